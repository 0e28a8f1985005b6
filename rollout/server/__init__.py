"""The rollout server: its process, its pages, and what they stream."""
