"""The reasoning-gym verifier: the scorers of reasoning-gym's procedural families, in killable workers."""
