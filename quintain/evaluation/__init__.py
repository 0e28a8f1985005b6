"""What a model can do, without training: `quintain eval` and `quintain reverify`. Only the command line imports this."""
