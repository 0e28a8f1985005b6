"""The SQL verifier: results compared, limits held, and nothing but reading possible."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.rules.sql.compare import Row, end_of_order, same_rows

SCHEMA = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, height REAL, boss INTEGER);
INSERT INTO people VALUES (1, 'Ada', 1.7, NULL), (2, 'Bob', 1.8, 1), (3, 'Cy', 1.6, 1), (4, 'Dee', 1.75, 2);
"""


def about(query: str, schema: str = SCHEMA) -> dict[str, str]:
    return {"query": query, "schema": schema}


NAMES = about("SELECT name FROM people WHERE boss = 1")
BY_NAME = about("SELECT name FROM people ORDER BY name")
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
TABLE: list[tuple[str, Any, Outcome]] = [
    ("SELECT name FROM people WHERE boss = 1", NAMES, Outcome.CORRECT),
    ("select p.NAME from people p join people b on p.boss = b.id where b.name = 'Ada';", NAMES, Outcome.CORRECT),
    ("SELECT name FROM people WHERE boss = 1 ORDER BY name DESC -- any order", NAMES, Outcome.CORRECT),
    ("Thus:\n```sql\nSELECT name FROM people WHERE id IN (2, 3)\n```\n", NAMES, Outcome.CORRECT),
    ("SELECT name, id FROM people WHERE boss = 1", NAMES, Outcome.WRONG),
    ("SELECT name FROM people", NAMES, Outcome.WRONG),
    ("SELECT name FROM people WHERE boss = 1 UNION ALL SELECT 'Cy'", NAMES, Outcome.WRONG),
    ("SELECT nickname FROM people", NAMES, Outcome.WRONG),
    ("SELECT name FROM people ORDER BY name DESC", BY_NAME, Outcome.WRONG),
    ("SELECT name FROM people ORDER BY id", BY_NAME, Outcome.CORRECT),
    ("SELECT boss FROM people WHERE id = 1", about("SELECT NULL"), Outcome.CORRECT),
    ("SELECT ''", about("SELECT NULL"), Outcome.WRONG),
    ("SELECT 0", about("SELECT NULL"), Outcome.WRONG),
    ("SELECT 5.0", about("SELECT 5"), Outcome.CORRECT),
    ("SELECT '5'", about("SELECT 5"), Outcome.WRONG),
    ("SELECT 0.1 + 0.2", about("SELECT 0.3"), Outcome.CORRECT),
    ("SELECT 0.301", about("SELECT 0.3"), Outcome.WRONG),
    ("SELECT avg(height) FROM people", about("SELECT sum(height) / count(*) FROM people"), Outcome.CORRECT),
    ("SELECT 1 WHERE 0", about("SELECT 2 WHERE 0"), Outcome.CORRECT),
    ("SELECT 1, 2 WHERE 0", about("SELECT 2 WHERE 0"), Outcome.WRONG),
    ("I am not sure.", NAMES, Outcome.UNPARSABLE),
    ("SELECT name FROM", NAMES, Outcome.UNPARSABLE),
    ("", NAMES, Outcome.UNPARSABLE),
    ("<think>SELECT 1", NAMES, Outcome.UNPARSABLE),
    # Only reading, one statement, within limits
    ("DELETE FROM people", NAMES, Outcome.WRONG),
    ("INSERT INTO people SELECT * FROM people", NAMES, Outcome.WRONG),
    ("DROP TABLE people", NAMES, Outcome.WRONG),
    ("CREATE TEMP TABLE t (a)", NAMES, Outcome.WRONG),
    ("PRAGMA table_info(people)", NAMES, Outcome.WRONG),
    ("PRAGMA writable_schema = 1", NAMES, Outcome.WRONG),
    ("SELECT * FROM pragma_database_list", NAMES, Outcome.WRONG),
    ("BEGIN", NAMES, Outcome.WRONG),
    ("SELECT load_extension('x')", NAMES, Outcome.WRONG),
    ("SELECT writefile('x', 'y')", NAMES, Outcome.WRONG),
    ("SELECT randomblob(1000000000)", NAMES, Outcome.WRONG),
    ("SELECT printf('%.*c', 20000000, 'x')", NAMES, Outcome.WRONG),
    ("SELECT name FROM people WHERE boss = 1; DELETE FROM people", NAMES, Outcome.WRONG),
    ("SELECT ?", NAMES, Outcome.WRONG),
    (ENDLESS + "SELECT n FROM r", NAMES, Outcome.WRONG),
    (ENDLESS + "SELECT count(*) FROM r", NAMES, Outcome.WRONG),
    ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, NAMES, Outcome.WRONG),
    ("SELECT " + "+".join(["1"] * 5_000), NAMES, Outcome.WRONG),
    ("SELECT name FROM people -- " + "x" * 60_000, NAMES, Outcome.UNPARSABLE),
    # References
    ("SELECT 1", about("SELEC 1"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about("SELECT 1 FROM nowhere"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about("DELETE FROM people"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about(ENDLESS + "SELECT n FROM r"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about("SELECT 1", "CREATE TABLE"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about("SELECT 1", "PRAGMA temp_store_directory = 'x'"), Outcome.BAD_REFERENCE),
    ("SELECT 1", about("SELECT 1", "CREATE VIRTUAL TABLE t USING fts5(a)"), Outcome.BAD_REFERENCE),
    ("SELECT 1", {"query": "SELECT 1"}, Outcome.BAD_REFERENCE),
    ("SELECT 1", {"query": "SELECT 1", "database": "x.db"}, Outcome.BAD_REFERENCE),
    ("SELECT 1", {"schema": SCHEMA}, Outcome.BAD_REFERENCE),
    ("SELECT 1", None, Outcome.BAD_REFERENCE),
]


async def test_the_table() -> None:
    async with get_verifier("sql", max_steps=2_000_000, deadline_s=30.0, workers=2) as verifier:
        verdicts = await verifier.verify([Item(answer, reference) for answer, reference, _ in TABLE])
    found = [(row[0][:60], verdict.outcome) for row, verdict in zip(TABLE, verdicts, strict=True)]
    assert found == [(answer[:60], outcome) for answer, _, outcome in TABLE]


async def test_no_file_is_made_or_attached(tmp_path: Path) -> None:
    target = tmp_path / "made.db"
    tries = [f"ATTACH '{target}' AS x", f"VACUUM INTO '{target}'", f"VACUUM main INTO '{target}'"]
    items = [Item(text, NAMES) for text in tries]
    items += [Item("SELECT 1", about("SELECT 1", f"{text};")) for text in tries]
    async with get_verifier("sql") as verifier:
        verdicts = await verifier.verify(items)
    assert not target.exists()
    assert [verdict.outcome for verdict in verdicts] == [Outcome.WRONG] * 3 + [Outcome.BAD_REFERENCE] * 3


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    folder = tmp_path / "databases"
    folder.mkdir()
    for path in (folder / "people.sqlite", tmp_path / "secret.sqlite"):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(SCHEMA)
    (folder / "link.sqlite").symlink_to(tmp_path / "secret.sqlite")
    (folder / "text.sqlite").write_text("no database")
    return folder


async def test_a_database_in_the_folder_is_read_and_never_written(databases: Path) -> None:
    def named(name: str) -> dict[str, str]:
        return {"query": NAMES["query"], "database": name}

    before = (databases / "people.sqlite").read_bytes(), sorted(os.listdir(databases))
    right = NAMES["query"]
    items = [Item(right, named("people.sqlite")), Item("UPDATE people SET name = 'x'", named("people.sqlite"))]
    outside = ["../secret.sqlite", str(databases.parent / "secret.sqlite"), "link.sqlite", "nope.sqlite", "", "."]
    items += [Item(right, named(name)) for name in [*outside, "text.sqlite", "a\0b"]]
    async with get_verifier("sql", databases=str(databases)) as verifier:
        verdicts = await verifier.verify(items)
    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes == [Outcome.CORRECT, Outcome.WRONG] + [Outcome.BAD_REFERENCE] * 8
    assert ((databases / "people.sqlite").read_bytes(), sorted(os.listdir(databases))) == before


def test_a_folder_that_is_none_is_refused() -> None:
    with pytest.raises(QuintainError, match="databases is a folder"):
        get_verifier("sql", databases="no/such/folder")


async def test_a_reference_without_rows_can_be_refused() -> None:
    async with get_verifier("sql", allow_empty=False) as verifier:
        [verdict] = await verifier.verify([Item("SELECT 1 WHERE 0", about("SELECT 2 WHERE 0"))])
    assert verdict.outcome is Outcome.BAD_REFERENCE


ORDERED = [
    ("SELECT a FROM t ORDER BY a", True),
    ("SELECT a FROM t order  by a LIMIT 3", True),
    ("SELECT a FROM t\nORDER -- so\nBY a", True),
    ("(SELECT 1) ORDER BY 1", True),
    ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
    ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
    ("SELECT 'x ORDER BY y'", False),
    ('SELECT "ORDER BY" FROM t', False),
    ("SELECT a FROM t -- ORDER BY a", False),
    ("SELECT a FROM t /* ORDER BY a */", False),
    ("SELECT [ORDER] FROM by_order", False),
]


@pytest.mark.parametrize(("query", "ordered"), ORDERED)
def test_only_an_order_by_at_the_top_level_orders(query: str, ordered: bool) -> None:
    assert (end_of_order(query) is not None) == ordered


VALUES = st.none() | st.integers(-3, 3) | st.floats(-3, 3, width=16) | st.sampled_from(["", "a", "1"])
ROWS = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), max_size=8))


@given(ROWS, st.randoms(use_true_random=False))
def test_a_multiset_does_not_change_by_shuffling_or_rounding_and_does_by_a_row(rows: list[Row], random: Any) -> None:
    shuffled = [tuple(v * (1 + 1e-12) if isinstance(v, float) else v for v in row) for row in rows]
    random.shuffle(shuffled)
    assert same_rows(rows, shuffled, ends=None, relative_tolerance=1e-6)
    assert same_rows(rows, rows, ends=list(range(1, len(rows) + 1)), relative_tolerance=0.0)
    assert not same_rows(rows, [*rows, ("new",)], ends=None, relative_tolerance=1e-6)
    if rows:
        other = [("not there", *rows[0][1:]), *rows[1:]]
        assert not same_rows(rows, other, ends=None, relative_tolerance=1e-6)


def test_rows_that_differ_in_fractions_alone_are_matched_as_a_whole() -> None:
    one = [(1.0, 2.0), (1.0 + 1e-12, 1.0)]
    other = [(1.0, 1.0), (1.0 + 1e-12, 2.0)]
    assert same_rows(one, other, ends=None, relative_tolerance=1e-6)
    assert not same_rows(one, [(1.0, 1.0), (1.0, 1.0)], ends=None, relative_tolerance=1e-6)


TIES = "CREATE TABLE t(id INTEGER, name TEXT); INSERT INTO t VALUES (1,'a'),(2,'b'),(3,'a'),(4,'b');"


@pytest.mark.parametrize(
    ("query", "answer", "outcome"),
    [
        ("SELECT id FROM t ORDER BY name", "SELECT id FROM t ORDER BY name, id DESC", Outcome.CORRECT),
        ("SELECT id FROM t ORDER BY name", "SELECT id FROM t ORDER BY name DESC, id", Outcome.WRONG),
        ("SELECT id FROM t ORDER BY id -- by id", "SELECT id FROM t ORDER BY id DESC", Outcome.WRONG),
        ("SELECT name FROM t ORDER BY name LIMIT 3", "SELECT name FROM t ORDER BY name, id LIMIT 3", Outcome.CORRECT),
        ("SELECT 1000000", "SELECT 1000001.0", Outcome.WRONG),
        ("SELECT 0.0000000001", "SELECT 0.0000000005", Outcome.WRONG),
        ("SELECT 0.3", "SELECT 0.1 + 0.2", Outcome.CORRECT),
        ("SELECT random()", "SELECT random()", Outcome.BAD_REFERENCE),
    ],
)
async def test_ties_may_come_in_any_order_and_numbers_are_what_they_are(
    query: str, answer: str, outcome: Outcome
) -> None:
    async with get_verifier("sql", workers=1) as verifier:
        [verdict] = await verifier.verify([Item(answer, {"query": query, "schema": TIES})])
    assert verdict.outcome is outcome, verdict
