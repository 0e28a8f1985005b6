"""Whether what was read is the same: by its tokens, by value, at random points, as sets."""
