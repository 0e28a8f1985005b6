"""The ids and texts of one tokenizer, and where a turn ends in them: what every `Chat` here stands on.

Whether a prompt goes on from the tokens so far is decided by their own text: the new rendering must begin with it.
Blanks are not compared, since templates trim them, tokenizers add them, and models write JSON with and without. What
follows is encoded from the token before it on, so that a tokenizer that marks the beginning of a text (SentencePiece)
marks none in the middle.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from quintain.arrays import Ints, as_ints
from quintain.messages import Message
from quintain.rollout.chat.stops import StopStrings
from quintain.rollout.engines.base import Sampling

REMEMBERED: Final = 4096
"""Prompts whose rendering is remembered, by their digests: the conversations that are going on."""
_BLANKS: Final = re.compile(r"\s*")
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTED: Final = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF: Final = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))
}
"""The letter that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`)."""


class TokenText:
    """What `tokenizer` makes of texts and ids; a turn ends at `stop_ids` and at the strings `stop`."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if getattr(token, "special", True)}
        self._special = special | {int(i) for i in tokenizer.all_special_ids}
        self._renderings: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()

    def text(self, ids: Ints) -> str:
        """What sampled ids say, as it stands, without the end of the turn."""
        closed = len(ids) > 0 and int(ids[-1]) in self.stop_ids
        return self._decode(ids[:-1].tolist() if closed else ids.tolist())

    def ends(self, sampling: Sampling, stop: Sequence[str] = ()) -> Sampling:
        """`sampling` with the ends of a turn: ids, and stop strings where there are any."""
        strings = (*self._stop, *stop)
        said = StopStrings(self._decode, strings) if strings else None
        return replace(sampling, stop_ids=self.stop_ids, said=said)

    def token_bytes(self, token: int) -> bytes:
        """What `token` adds to a text, in UTF-8; it may be half a letter."""
        if token in self._added:
            return self._added[token].encode()
        if self._bytes == "text":
            return self._decode([token]).encode()
        piece: str = self._tokenizer.convert_ids_to_tokens(token)
        if self._bytes == "letters":
            return bytes(_BYTE_OF[letter] for letter in piece)
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    @cached_property
    def _bytes(self) -> str:
        """How the vocabulary writes bytes: a letter for each (GPT-2), pieces named `<0x0A>` (SentencePiece), or not."""
        words = self._tokenizer.get_vocab() if hasattr(self._tokenizer, "get_vocab") else ()
        return "pieces" if "<0x0A>" in words else "letters" if {"Ċ", "Ġ"} <= set(words) else "text"

    def _said(self, output_ids: Ints, stop: Sequence[str]) -> tuple[str, bool]:
        """What sampled ids say before the end of the turn, and whether the model ended it."""
        whole = self.text(output_ids)
        before = StopStrings(self._decode, (*self._stop, *stop)).before(whole)
        if before is not None:
            return before, True
        return whole, len(output_ids) > 0 and int(output_ids[-1]) in self.stop_ids

    def _extended(self, prompt_ids: Ints, output_ids: Ints, text: str, spoken: str) -> Ints | None:
        """The ids so far, and then those of the rest of `text`; None where `text` does not begin with what they say.

        What the output says behind the last message, `spoken`, may be a stop string, and more that came with its last
        token. Where the template writes the same, that is it; else it stands before what the template goes on with.
        """
        ids = as_ints(np.concatenate([prompt_ids, output_ids]))
        start = self._remembered(prompt_ids, text)
        stretches = list(self._stretches(ids if start is None else output_ids))
        place = _end_of(stretches, text, start or 0)
        said, added = stretches[-1] if stretches else ("", True)
        if place is None and not added and spoken and spoken in said:
            place = _end_of([*stretches[:-1], (said[: said.rindex(spoken) + len(spoken)], False)], text, start or 0)
        if place is None:
            return None
        extended = as_ints(np.concatenate([ids, self._continued(ids, text[place:])]))
        self._remember(extended, text)
        return extended

    def _remember(self, prompt_ids: Ints, text: str) -> None:
        """`prompt_ids` say `text`, so that the next prompt need not look at them again."""
        self._renderings[_digest(prompt_ids.tobytes())] = (len(text), _digest(text))
        if len(self._renderings) > REMEMBERED:
            self._renderings.popitem(last=False)

    def _remembered(self, prompt_ids: Ints, text: str) -> int | None:
        """Where in `text` what `prompt_ids` say ends, where that is known and `text` begins with it."""
        length, digest = self._renderings.get(_digest(prompt_ids.tobytes()), (0, b""))
        return length if digest and _digest(text[:length]) == digest else None

    def _stretches(self, ids: Ints) -> Iterator[tuple[str, bool]]:
        """The text of `ids` in pieces: an added token, or all that stands between two of them."""
        plain: list[int] = []
        for i in ids.tolist():
            if i in self._added:
                if plain:
                    yield self._decode(plain), False
                    plain = []
                yield self._added[i], True
            else:
                plain.append(i)
        if plain:
            yield self._decode(plain), False

    def _continued(self, ids: Ints, rest: str) -> Ints:
        """The ids of `rest` behind the last of `ids`, its left neighbour."""
        last = int(ids[-1]) if len(ids) else -1
        left = self._added.get(last, "x")
        alone, together = self._encode(left), self._encode(left + rest)
        if np.array_equal(together[: len(alone)], alone):
            return as_ints(together[len(alone) :])
        return self._encode(rest)

    def _encode(self, text: str) -> Ints:
        return as_ints(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def why_it_forks(messages: Sequence[Message]) -> str:
    """Why the rendering of what follows `messages` does not begin with the tokens so far."""
    if any(message.reasoning is not None for message in messages):
        return "template_drops_reasoning"
    return "template_rewrites_history"


def shared_start(left: str, right: str) -> int:
    """How many characters `left` and `right` have in common at their beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low


def _digest(data: bytes | str) -> bytes:
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.blake2b(plain, digest_size=16).digest()


def _end_of(stretches: Sequence[tuple[str, bool]], text: str, start: int) -> int | None:
    """Where in `text` what the tokens say from `start` on ends, blanks aside; None where `text` says something else."""
    place, blanks = start, 0
    for said, added in stretches:
        blanks = 0 if added else len(said) - len(said.rstrip())
        if text.startswith(said, place):
            place, blanks = place + len(said), 0
            continue
        for letter in "".join(said.split()):
            place = _blanks_end(text, place)
            if not text.startswith(letter, place):
                return None
            place += 1
    return min(place + blanks, _blanks_end(text, place))


def _blanks_end(text: str, start: int) -> int:
    blanks = _BLANKS.match(text, start)
    return blanks.end() if blanks else start
