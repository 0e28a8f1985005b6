"""Launching: the servers of a run, its folder, and the runs themselves. Only the command line imports this."""
