"""Environments over HTTP: the server, its sessions of episodes, and the wire."""
