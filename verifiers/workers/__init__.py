"""A pool of killable worker processes with a deadline for each item, and the verifiers that check in it."""
