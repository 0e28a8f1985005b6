"""From the trainer to the engine: weights in shared memory, and the canary that proves them."""
