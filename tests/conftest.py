"""For all tests: hypothesis has no stopwatch (two cores are shared), and a failure says how to repeat it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quintain", deadline=None, print_blob=True)
settings.load_profile("quintain")
