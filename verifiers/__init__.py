"""Verifiers: what turns an answer into a verdict.

`get_verifier("math")` makes one; `await verifier.verify(items)` gives a verdict for each item, in order;
`verify_sync` does both for scripts. Importing this package loads no mathematics and starts no process.
"""

from quintain.verifiers.base import Item, Verifier
from quintain.verifiers.registry import available_verifiers, get_verifier, verify_sync

__all__ = ["Item", "Verifier", "available_verifiers", "get_verifier", "verify_sync"]
