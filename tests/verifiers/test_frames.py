"""Frames: what goes in comes out, however the stream is cut, and nonsense is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.workers.frames import MAX_FRAME_BYTES, FrameError, FrameReader, encode

TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates included
MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_messages_survive_any_cutting_of_the_stream(messages: list[Any], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in messages)
    reader, read, at = FrameReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        read += reader.feed(stream[at : at + size])
        at += size
    assert read == messages


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="at most"):
        FrameReader().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


@given(st.binary(min_size=1, max_size=50))
def test_nonsense_is_a_frame_error_or_a_message(body: bytes) -> None:
    frame = struct.pack(">I", len(body)) + body
    try:
        messages = FrameReader().feed(frame)
    except FrameError:
        return
    assert len(messages) == 1


def test_a_message_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="at most"):
        encode("x" * (MAX_FRAME_BYTES + 1))
