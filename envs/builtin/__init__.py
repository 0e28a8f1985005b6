"""The environments that come with quintain."""
