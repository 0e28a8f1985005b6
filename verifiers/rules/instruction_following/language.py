"""Which language a text is in, by langdetect, an optional dependency. The same text always gets the same answer."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

INSTALL: Final = "pip install 'quintain[ifeval]'"
MAX_CHARS: Final = 10_000
"""The language of so much of a text is taken for that of all of it."""
SEED: Final = 0
"""langdetect samples; a fixed seed makes it a function of the text."""


@cache
def _tables() -> Any:
    """langdetect's tables, loaded at the first use, which takes about a second."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = SEED
    return factory


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of the language of `text` (zh-cn and zh-tw for Chinese), or None where nothing tells."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _tables().create()
    detector.append(text[:MAX_CHARS])
    try:
        found = detector.detect()
    except LangDetectException:  # no letters in it
        return None
    return None if found == "unknown" else str(found)
