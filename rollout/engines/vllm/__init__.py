"""vLLM: one or many replicas of an unmodified server, as one engine. `engine.VLLMEngine` is the way in."""
