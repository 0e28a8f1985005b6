"""What docs/verifiers/ says of each verifier is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quintain.verifiers import Item, get_verifier
from quintain.verifiers.registry import BUILT_IN

from .test_judge import honest, longer, stand_in, texts

FOLDER = Path(__file__).parents[2] / "docs" / "verifiers"
INDEX = (FOLDER / "README.md").read_text()
PAGES = {
    page.stem: page.read_text()
    for page in sorted(FOLDER.glob("*.md"))
    if "| answer | reference | outcome |" in page.read_text()
}
ROW = re.compile(r"^\| `(.*)` \| `(.*)` \| (\w+) \|$", re.MULTILINE)
OPTIONS = re.compile(r"^With `(\{.*\})`:$", re.MULTILINE)


def tables(page: str) -> Iterator[tuple[dict[str, Any], list[tuple[str, str, str]]]]:
    """(options, rows) of each table of examples; a row is (answer, reference, outcome)."""
    plain, *others = OPTIONS.split(page)
    for options, text in (("{}", plain), *zip(others[::2], others[1::2], strict=True)):
        if rows := ROW.findall(text):
            yield json.loads(options), rows


@pytest.mark.parametrize("name", PAGES)
async def test_every_example_of_a_page_is_judged_as_it_says(name: str, request: pytest.FixtureRequest) -> None:
    found = list(tables(PAGES[name]))
    assert sum(len(rows) for _, rows in found) == PAGES[name].count("\n| `")
    async with stand_in(lambda message: (longer if "FIRST" in texts(message) else honest)(message)) as model:
        for options, rows in found:
            if name == "judge":
                options |= {"url": model.url, "model": "stand-in"}
            if name == "reward_model":
                options |= {"model": request.getfixturevalue("tiny_classifier")}
            async with get_verifier(name, **options) as verifier:
                verdicts = await verifier.verify([Item(json.loads(row[0]), json.loads(row[1])) for row in rows])
            assert [str(verdict.outcome) for verdict in verdicts] == [outcome for _, _, outcome in rows]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_index_leads_to_a_page_that_is_there(name: str) -> None:
    link = re.search(rf"^\| \[`{name}`\]\((.+?)\) \| ", INDEX, re.MULTILINE)
    assert link is not None
    assert f"`{name}`" in (FOLDER / link[1]).read_text() or (FOLDER / link[1]).stem == name
