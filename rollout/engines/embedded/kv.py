"""Slots: the keys and values of the rows being decoded.

One buffer for all keys and one for all values, [L, B, H, T, D]: L layers, B slots, H key/value heads, T positions,
D head size. Rows sit in slots 0 .. n-1; each is filled up to its own length.

Invariants:
- a layer's slice over the padded batch is contiguous, since the batched products of bf16 take no other (they copy);
- a position that a row has not filled holds zeros, so nothing an earlier row left can reach a later one (a masked
  position still contributes zero times its value, and zero times NaN is NaN);
- T is the longest row's need, rounded up to a block: the batch is trimmed in time as well as in rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TIME_BLOCK = 32
_SMALL_BATCHES = (1, 2, 4, 8)
_BATCH_BLOCK = 8


def padded_rows(rows: int) -> int:
    """The batch size that `rows` rows are computed in.

    Every new shape costs oneDNN about ten milliseconds of code generation over a whole step, and its tiles are 16
    rows high: a dozen batch sizes instead of 64.
    """
    return next((size for size in _SMALL_BATCHES if rows <= size), -(-rows // _BATCH_BLOCK) * _BATCH_BLOCK)


def padded_tokens(tokens: int) -> int:
    """The number of positions that `tokens` positions are stored in."""
    return -(-tokens // _TIME_BLOCK) * _TIME_BLOCK


class KVCache:
    """The key/value cache of a running batch. `lengths` is how many positions each row has filled."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._keys = torch.empty(0)
        self._values = torch.empty(0)
        self._index = torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """The padded batch size."""
        return padded_rows(len(self.lengths))

    @property
    def tokens(self) -> int:
        """The padded number of positions T."""
        return self._keys.shape[3] if self._keys.dim() == 5 else 0

    def admit(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], source: Sequence[int], lengths: Sequence[int]
    ) -> None:
        """Append rows: row i gets the first `lengths[i]` positions of prompt `source[i]`.

        `keys` and `values` are one tensor [P, H, S, D] per layer for P prompts; several rows may share a prompt.
        """
        before, first, last = self.lengths, len(self.lengths), len(self.lengths) + len(source)
        self.lengths = [*before, *lengths]
        try:
            self._fill(keys, values, source, first, last)
        except BaseException:
            self.lengths = before  # out of memory, say: the rows that were there go on
            raise

    def _fill(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], source: Sequence[int], first: int, last: int
    ) -> None:
        self._fit(keys, values)
        lengths = self.lengths[first:last]
        longest = max(lengths)
        pick = torch.tensor(source)
        # What lies past a shorter prompt's end in its padded prefill is rubbish: zero it with the rest of the slot.
        beyond = torch.arange(longest)[None, :] >= torch.tensor(lengths)[:, None]
        ragged = bool(beyond.any())
        for buffer, parts in ((self._keys, keys), (self._values, values)):
            buffer[:, first:last, :, longest:] = 0
            for layer, part in enumerate(parts):
                rows = part[:, :, :longest].index_select(0, pick)
                if ragged:
                    rows = rows.masked_fill_(beyond[:, None, :, None], 0)
                buffer[layer, first:last, :, :longest] = rows

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Free the slots `rows`. Returns which old row each remaining row is: the last ones move into the holes."""
        gone = set(rows)
        order = list(range(len(self.lengths) - len(gone)))
        movers = [row for row in range(len(order), len(self.lengths)) if row not in gone]
        for hole in sorted(row for row in gone if row < len(order)):
            order[hole] = mover = movers.pop()
            self._keys[:, hole] = self._keys[:, mover]
            self._values[:, hole] = self._values[:, mover]
        self.lengths = [self.lengths[row] for row in order]
        return order

    def clear(self) -> None:
        """Forget every row."""
        self.lengths = []

    def begin_step(self) -> Tensor:
        """Make room for one more position in each row and say what a step may see.

        Returns an additive mask [B, 1, 1, T], B padded: zero up to and including the new position, -inf after it.
        """
        self._fit(self._keys, self._values)
        new = torch.tensor(self.positions())
        heads = torch.arange(self._keys.shape[2])
        self._index = ((torch.arange(self.rows)[:, None] * len(heads) + heads) * self.tokens + new[:, None]).flatten()
        mask = torch.zeros(self.rows, self.tokens, dtype=self._keys.dtype)
        mask.masked_fill_(torch.arange(self.tokens) > new[:, None], -torch.inf)
        return mask[:, None, None, :]

    def positions(self) -> list[int]:
        """Where each row of the padded batch writes next; padding rows write to position 0."""
        return self.lengths + [0] * (self.rows - len(self.lengths))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new `keys` and `values` [B, H, D] of `layer` in place; returns all of them, [B, H, T, D]."""
        all_keys = self._keys[layer, : self.rows]
        all_values = self._values[layer, : self.rows]
        all_keys.view(-1, keys.shape[-1]).index_copy_(0, self._index, keys.reshape(-1, keys.shape[-1]))
        all_values.view(-1, values.shape[-1]).index_copy_(0, self._index, values.reshape(-1, values.shape[-1]))
        return all_keys, all_values

    def end_step(self) -> None:
        """Every row has one more position."""
        self.lengths = [length + 1 for length in self.lengths]

    def _fit(self, keys: Sequence[Tensor] | Tensor, values: Sequence[Tensor] | Tensor) -> None:
        """Lay the buffers out anew where the batch has outgrown them or needs much less than they hold."""
        tokens = padded_tokens(max(self.lengths) + 1)
        if self.tokens and self.rows <= self._keys.shape[1] and tokens <= self.tokens < 1.5 * tokens + _TIME_BLOCK:
            return
        new_keys = self._moved(self._keys, len(keys), keys[0], tokens)
        self._values = self._moved(self._values, len(values), values[0], tokens)
        self._keys = new_keys

    def _moved(self, old: Tensor, layers: int, like: Tensor, tokens: int) -> Tensor:
        """`old` in the shape [layers, B, H, tokens, D], with zeros where it has nothing."""
        new = like.new_zeros(layers, self.rows, like.shape[1], tokens, like.shape[-1])
        if old.dim() == new.dim():
            rows, kept = min(old.shape[1], self.rows), min(old.shape[3], tokens)
            new[:, :rows, :, :kept] = old[:, :rows, :, :kept]
        return new
