"""New weights on the engine's side: the canary that proves them, and the folders that they come in."""
