"""transformers' own progress bars, off: a run draws one picture of its progress, and logs stay readable."""

from __future__ import annotations


def quiet_transformers() -> None:
    """Turn off the progress bars and the advice of transformers, in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
