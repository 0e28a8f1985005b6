"""What the pool, its zygote and its workers say to each other: msgpack in frames, never pickle.

Text may hold lone surrogates: models write anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from quintain.frames import FrameError, FrameReader, framed


def encode(message: Any) -> bytes:
    """`message` (dicts, lists, text, numbers) as one frame. Raises FrameError where it is too long."""
    return framed(msgpack.packb(message, unicode_errors="surrogatepass"))


def messages(reader: FrameReader) -> Iterator[Any]:
    """Those that have come whole. Raises FrameError on nonsense."""
    for body in reader.bodies():
        try:
            yield msgpack.unpackb(body, unicode_errors="surrogatepass", strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a map is a map's key
            raise FrameError(f"expected a msgpack message, got {len(body)} bytes that are none: {error}") from None
