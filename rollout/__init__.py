"""Rollout: engines, renderers, the episode loop, groups, admission, the journal and the rollout server."""
