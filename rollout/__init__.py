"""Rollout: engines, the chat layer, the episode loop, groups, admission, the journal and the rollout server."""
