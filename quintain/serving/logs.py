"""What servers and their workers log, to standard error: sentences, or lines of JSON where QUINTAIN_LOG_JSON is set.

What always holds: of JSON, each request that was answered and each episode that ended is one line, an `event`; an event
says who, where and what became of it, and nothing of what a client sent: no header, no query, no body. What an
environment itself prints goes between the lines.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

LOG_JSON_ENV: Final = "QUINTAIN_LOG_JSON"
log = logging.getLogger(__name__)


def begin_logging() -> None:
    """Log to standard error from now on."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if os.environ.get(LOG_JSON_ENV):
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())
        log.setLevel(logging.INFO)


def tell(event: str, **said: Any) -> None:
    """Log an event, with what is to be said of it; nothing where lines are sentences."""
    if log.isEnabledFor(logging.INFO):
        log.info("", extra={"said": {"event": event} | said})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        said = getattr(record, "said", None) or {"message": super().format(record)}
        return json.dumps(
            {"time": datetime.fromtimestamp(record.created, UTC).isoformat(), "level": record.levelname} | said
        )
