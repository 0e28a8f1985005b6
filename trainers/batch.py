from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
import numpy as np, torch
from torch import Tensor
from quintain.trajectory import Segment


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    gather: Tensor
    targets: Tensor
    row: Tensor
    segments: tuple[int, ...]


def micro_batches(segments, groups, *, layout, max_tokens):
    by = {}
    for i, g in enumerate(groups):
        by.setdefault(g if layout != "padded" else i, []).append(i)
    trees = []
    for members in by.values():
        nodes = {}
        tok = []
        par = []
        dep = []
        where = {}
        for i in sorted(members, key=lambda i: segments[i].ids.tolist()):
            at = -1
            path = []
            for t in segments[i].ids[:-1].tolist():
                k = (at, t)
                if k not in nodes:
                    nodes[k] = len(tok)
                    tok.append(t)
                    par.append(at)
                    dep.append(0 if at < 0 else dep[at] + 1)
                at = nodes[k]
                path.append(at)
            where[i] = path
        n = len(tok)
        allow = np.zeros((n, n), bool)
        for j in range(n):
            if par[j] >= 0:
                allow[j] = allow[par[j]]
            allow[j, j] = True
        trees.append((members, tok, dep, allow, where))
    out = []
    cur = []

    def flush():
        if not cur:
            return
        L = max(len(t[1]) for t in cur)
        B = len(cur)
        ids = np.zeros((B, L), np.int64)
        pos = np.zeros((B, L), np.int64)
        mask = np.zeros((B, 1, L, L), bool)
        mask[:, :, range(L), range(L)] = True
        order = sorted(i for t in cur for i in t[0])
        row_of = {i: r for r, i in enumerate(order)}
        g = []
        ta = []
        ro = []
        loc = {}
        for b, (members, tok, dep, allow, where) in enumerate(cur):
            n = len(tok)
            ids[b, :n] = tok
            pos[b, :n] = dep
            mask[b, 0, :n, :n] = allow
            for i in members:
                loc[i] = [b * L + p for p in where[i]]
        for i in order:
            s = segments[i]
            ps = np.nonzero(s.mask)[0]
            g += [loc[i][p - 1] for p in ps]
            ta += s.ids[ps].tolist()
            ro += [row_of[i]] * len(ps)
        out.append(
            MicroBatch(
                torch.from_numpy(ids),
                torch.from_numpy(pos),
                torch.from_numpy(mask),
                torch.tensor(g),
                torch.tensor(ta),
                torch.tensor(ro),
                tuple(order),
            )
        )
        cur.clear()

    for t in trees:
        L = max([len(t[1])] + [len(c[1]) for c in cur])
        if cur and L * (len(cur) + 1) > max_tokens:
            flush()
        cur.append(t)
    flush()
    return out
