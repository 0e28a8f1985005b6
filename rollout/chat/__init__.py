"""Between messages and tokens: rendering, prefixes that extend exactly, tools and their calls."""
