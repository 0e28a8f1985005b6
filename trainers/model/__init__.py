"""The model under training: loading, forward passes, attention over trees, the chunked LM head, number types."""
