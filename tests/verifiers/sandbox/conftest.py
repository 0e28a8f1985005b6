"""Namespace sandboxes for the tests: with root's means where the tests have them, and as an ordinary user."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import psutil
import pytest
import pytest_asyncio

from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

from . import leftovers

NOBODY = 65534
MODES = ["root", "user"] if os.geteuid() == 0 else ["user"]


Make = Callable[..., NamespaceSandbox]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    """When the tests of a module are over, the host is as it was: no process, mount, control group, file or
    descriptor more."""
    before = leftovers.look()
    yield
    late = [psutil.Process(pid) for pid in leftovers.family() - before.processes if psutil.pid_exists(pid)]
    psutil.wait_procs(late, timeout=leftovers.GONE_WITHIN_S)
    after = leftovers.look()
    assert [status for pid in after.processes - before.processes if (status := leftovers.status_of(pid))] == []
    assert after.mounts <= before.mounts
    assert after.groups <= before.groups
    assert after.shared_names <= before.shared_names
    assert [each for each in after.descriptors - before.descriptors if "pytest" not in each] == []


def user_of(mode: str) -> int | None:
    """The user a sandbox becomes in `mode`. As root, becoming somebody else is what makes an ordinary user."""
    return NOBODY if mode == "user" and os.geteuid() == 0 else None


@pytest.fixture(params=MODES)
def user(request: pytest.FixtureRequest) -> int | None:
    """Whom the sandbox of the test becomes: every test that asks runs once for each kind of user."""
    return user_of(request.param)


@pytest.fixture
def make(user: int | None) -> Make:
    """Makes a sandbox, of two slots unless told otherwise."""
    return lambda slots=2, **options: NamespaceSandbox(slots=slots, user=user, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODES)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[NamespaceSandbox]:
    """A sandbox of two slots that the tests of a module share: no test may leave anything in it."""
    async with NamespaceSandbox(slots=2, user=user_of(request.param)) as sandbox:
        yield sandbox
