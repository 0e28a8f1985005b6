"""The judge: a language model behind an OpenAI-compatible endpoint says whether an answer is right."""
