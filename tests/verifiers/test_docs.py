"""What docs/verifiers/ says of each verifier is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quintain.verifiers import Item, verify_sync

PAGES = {
    page.stem: page
    for page in sorted((Path(__file__).parents[2] / "docs" / "verifiers").glob("*.md"))
    if "| answer | reference | outcome |" in page.read_text()
}
ROW = re.compile(r"^\| `(.*)` \| `(.*)` \| (\w+) \|$", re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_every_example_of_a_page_is_judged_as_it_says(name: str) -> None:
    rows = ROW.findall(PAGES[name].read_text())
    assert rows
    items = [Item(json.loads(answer), json.loads(reference)) for answer, reference, _ in rows]
    verdicts = verify_sync(name, items)
    assert [str(verdict.outcome) for verdict in verdicts] == [outcome for _, _, outcome in rows]
