"""Programs that want more than is theirs: each ends in time with the right status, and its neighbour never
notices."""

from __future__ import annotations

import asyncio
import time

import pytest

from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

from . import leftovers
from .hostile_programs import HOSTILE, limits_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEIGHBOUR = "import time\nfor i in range(20): time.sleep(0.01)\nprint(sum(range(200_000)))"
NEIGHBOUR_SAYS = b"19999900000\n"


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_program_ends_in_time_and_costs_nobody_anything(sandbox: NamespaceSandbox, name: str) -> None:
    source, statuses = HOSTILE[name]
    limits = limits_of(statuses)
    mounts, shared = leftovers.mounts(), leftovers.shared_names()
    began = time.monotonic()
    hostile = asyncio.create_task(sandbox.run(Program.python(source), stdin=bytes(1 << 20), limits=limits))
    neighbour = await sandbox.run(Program.python(NEIGHBOUR), limits=Limits(wall_s=20))
    done = await hostile
    took = time.monotonic() - began

    assert done.status in statuses, done
    assert took < limits.wall_s + 3.0
    assert (neighbour.status, neighbour.stdout) == (Status.OK, NEIGHBOUR_SAYS)
    assert len(done.stdout) + len(done.stderr) <= limits.output_bytes
    assert sandbox.zygote_pid is not None
    assert leftovers.of_zygote(sandbox.zygote_pid) == []
    assert leftovers.mounts() <= mounts
    assert leftovers.shared_names() <= shared


async def test_the_next_run_in_the_slot_finds_nothing_of_the_one_before(sandbox: NamespaceSandbox) -> None:
    poison = Program.python(
        "import builtins, os, sys, json\n"
        "builtins.print = json.dumps = sys.exit = None\n"
        "sys.path.insert(0, '/tmp'); os.environ['MARK'] = 'POISON'\n"
        "for folder in ('/tmp', '/dev/shm', '.', '/box'):\n"
        "    for name in ('json.py', 'sitecustomize.py', 'mark'):\n"
        "        open(f'{folder}/{name}', 'w').write('raise SystemExit(66)')\n"
    )
    look = Program.python(
        "import json, os, sys\n"
        "print(json.dumps([sorted(os.listdir(f)) for f in ('/tmp', '/dev/shm', '.', '/box')]), 'MARK' in os.environ,\n"
        "      '/tmp' in sys.path, [p for p in os.listdir('/proc') if p.isdigit()])\n"
    )
    for _ in range(4):  # more than there are slots
        assert (await sandbox.run(poison)).status is Status.OK
    for _ in range(4):
        done = await sandbox.run(look)
        assert done.stdout == b'[[], [], ["main.py"], ["shm", "tmp", "work"]] False False [\'2\']\n', done


async def test_the_memory_of_a_run_holds_nothing_of_the_one_before(sandbox: NamespaceSandbox) -> None:
    """A program may read its own memory, which it has from its zygote: no other program's text may be there."""
    secret = "the-expected-output-of-somebody-else"
    for _ in range(4):
        program = Program.python(f"x = {secret!r} * 10", "argument-" + secret, env={"NAME": secret})
        done = await sandbox.run(program, stdin=secret.encode(), files={"f": secret.encode()})
        assert done.status is Status.OK
    search = Program.python(
        "import re\nneedle = bytes(map(lambda c: c - 1, bytes(map(int, input().split()))))\n"
        "found = 0\nmem = open('/proc/self/mem', 'rb', 0)\n"
        "for line in open('/proc/self/maps'):\n"
        "    low, high, mode = re.match(r'(\\w+)-(\\w+) (\\S+)', line).groups()\n"
        "    if 'r' in mode and '[v' not in line:\n"
        "        mem.seek(int(low, 16))\n"
        "        try: found += mem.read(int(high, 16) - int(low, 16)).count(needle)\n"
        "        except OSError: pass\n"
        "print(found)"
    )
    spelt = " ".join(str(byte + 1) for byte in secret.encode())
    done = await sandbox.run(search, stdin=spelt.encode(), limits=Limits(memory_bytes=1 << 30))
    assert (done.stdout, done.stderr) == (b"1\n", b""), "only the needle itself"
