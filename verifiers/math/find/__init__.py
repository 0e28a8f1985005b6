"""Where an answer is: in a model's text, and in a reference."""
