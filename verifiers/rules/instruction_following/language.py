"""Which language a text is in, by langdetect, an optional dependency. The same text always gets the same answer."""

from __future__ import annotations

from typing import Any, Final

INSTALL: Final = "pip install 'quintain[ifeval]'"
MAX_CHARS: Final = 10_000
"""The language of so much of a text is taken for that of all of it."""
SEED: Final = 0
"""langdetect samples; a fixed seed makes it a function of the text."""


class Detector:
    """Detects languages; its tables are loaded at the first use and take about a second."""

    def __init__(self) -> None:
        self._factory: Any = None

    def __call__(self, text: str) -> str | None:
        """The ISO 639-1 code of the language of `text` (zh-cn and zh-tw for Chinese), or None where nothing tells."""
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
        from langdetect.lang_detect_exception import LangDetectException

        if self._factory is None:
            factory = DetectorFactory()
            factory.load_profile(PROFILES_DIRECTORY)
            factory.seed = SEED
            self._factory = factory
        detector = self._factory.create()
        detector.append(text[:MAX_CHARS])
        try:
            found = detector.detect()
        except LangDetectException:  # no letters in it
            return None
        return None if found == "unknown" else str(found)
