"""Engines: what samples tokens. Import the one you need; only `embedded` needs torch."""
