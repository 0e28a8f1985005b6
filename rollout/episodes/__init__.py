"""Playing episodes: one at a time, many at once, through an engine or an endpoint."""
