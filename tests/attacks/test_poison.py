"""What one program leaves behind, the next does not find."""

from __future__ import annotations

import pytest

from quintain.verdict import Outcome
from quintain.verifiers import Item
from quintain.verifiers.base import Verifier

from .attacks import HIDDEN, reference_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = """
import glob, os, sys
places = [folder + "/answer" for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/box", "/box/work", "/box/tmp",
    os.path.expanduser("~"), sys.prefix, "/usr/lib/python3/dist-packages", "/run", "/var")]
"""
LEAVE = """
for place in places:
    try: open(place, "w").write("8173")
    except OSError: pass
for file in glob.glob("/usr/lib/python3*/json/__pycache__/*") + glob.glob("/usr/lib/python3*/random.py"):
    try: open(file, "ab").write(b"answer = 8173")
    except OSError: pass
import json, random, builtins
json.answer = random.answer = builtins.answer = 8173
"""
FIND = """
def found():
    for place in places:
        try: return int(open(place).read())
        except (OSError, ValueError): pass
    import builtins, json, random
    for module in (json, random, builtins):
        if hasattr(module, "answer"): return module.answer
    return 0
"""
ENDINGS = {
    "function": ("def secret(x): return 8173\n", "def secret(x): return found()\n"),
    "stdio": ("print(8173)\n", "print(found())\n"),
}


@pytest.mark.parametrize("kind", sorted(ENDINGS))
async def test_nothing_that_a_right_program_leaves_helps_the_next(kind: str, verifier: Verifier) -> None:
    honest, thief = ENDINGS[kind]
    reference = reference_of(kind, HIDDEN)
    for _ in range(5):  # in every slot
        items = [Item(f"```python\n{PLACES}{LEAVE}{honest}```", reference)] * 3
        items += [Item(f"```python\n{PLACES}{FIND}{thief}```", reference)] * 3
        verdicts = await verifier.verify(items)
        assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT] * 3 + [Outcome.WRONG] * 3
    stolen = await verifier.verify([Item(f"```python\n{PLACES}{FIND}{thief}```", reference)] * 6)
    assert {verdict.outcome for verdict in stolen} == {Outcome.WRONG}


async def test_cases_of_one_program_do_not_find_what_the_last_case_left(verifier: Verifier) -> None:
    counting = """
import os
n = len(os.listdir("/tmp")) + len(os.listdir("."))
open(f"/tmp/{n}", "w")
open(f"a{n}", "w")
print(n)
"""
    cases = [{"stdin": "", "stdout": "1"}] * 6  # its own file
    (verdict,) = await verifier.verify([Item(f"```python\n{counting}```", {"kind": "stdio", "cases": cases})])
    assert verdict.outcome is Outcome.CORRECT, verdict
