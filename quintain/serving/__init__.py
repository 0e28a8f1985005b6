"""What every HTTP server of ours shares: sockets, tokens, refusals, metrics, and the way requests are read.

`refusals` is all that a client may need, and loads no server.
"""
