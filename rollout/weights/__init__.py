"""New weights on the engine's side: the canary that proves them, and what dead trainers left behind."""
