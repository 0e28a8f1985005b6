"""Evaluating without training: `quintain eval` and `quintain reverify`. Only the command line imports this."""
