"""Frames: what goes in comes out, however the stream is cut, and nonsense is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quintain.frames import MAX_FRAME_BYTES, FrameError, FrameReader, framed
from quintain.verifiers.workers.wire import encode, messages

TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates included
MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def read(stream: bytes, limit: int = MAX_FRAME_BYTES) -> list[Any]:
    reader = FrameReader(limit)
    reader.feed(stream)
    return list(messages(reader))


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_messages_survive_any_cutting_of_the_stream(said: list[Any], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in said)
    reader, read, at = FrameReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        reader.feed(stream[at : at + size])
        read += messages(reader)
        at += size
    assert read == said


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="at most"):
        read(struct.pack(">I", MAX_FRAME_BYTES + 1))
    with pytest.raises(FrameError, match="at most 3 bytes, not 4"):
        read(struct.pack(">I", 4), limit=3)


@given(st.binary(min_size=1, max_size=50))
@example(b"\x81\x80\x00")
def test_nonsense_is_a_frame_error_or_a_message(body: bytes) -> None:
    frame = struct.pack(">I", len(body)) + body
    try:
        found = read(frame)
    except FrameError:
        return
    assert len(found) == 1


def test_a_message_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="at most"):
        framed(bytes(MAX_FRAME_BYTES + 1))
