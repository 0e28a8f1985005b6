"""The code verifier over containers judges as it does over namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quintain.verifiers import Item, get_verifier

from ..sandbox.engine import IMAGE, NoEngine, engine

FUNCTION = {"kind": "function", "entry_point": "f", "tests": "def check(f): assert f([1, 2]) == [2, 1]"}
STDIO = {"kind": "stdio", "cases": [{"stdin": "3\n", "stdout": "6\n"}, {"stdin": "4\n", "stdout": "8\n"}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of an engine of our own."""
    try:
        with engine() as address:
            yield address
    except NoEngine as why:
        pytest.skip(f"the code verifier is not tested over docker: {why}")


@pytest.mark.needs_docker
async def test_containers_give_the_same_verdicts(url: str) -> None:
    async with get_verifier("code", backend="docker", image=IMAGE, engine_url=url, slots=1) as verifier:
        verdicts = await verifier.verify(
            [
                Item("```python\ndef f(x): return x[::-1]\n```", FUNCTION),
                Item("```python\ndef f(x): return x\n```", FUNCTION),
                Item("```python\nimport os\ndef f(x): os._exit(0)\n```", FUNCTION),
                Item("```python\nprint(2 * int(input()))\n```", STDIO),
                Item("```python\nprint(6)\n```", STDIO),
                Item("```python\nwhile True: pass\n```", STDIO | {"limits": {"wall_s": 1}}),
            ]
        )
    statuses = [verdict.detail.get("status") for verdict in verdicts]
    expected = ["passed", "wrong_answer", "runtime_error", "passed", "wrong_answer", "timeout"]
    assert statuses == expected, verdicts
