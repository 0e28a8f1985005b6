"""The engine inside the rollout server: transformers' weights, decoded in batches of our own."""
