"""Programs that read and write: comparison, limits, the order of cases, and other languages."""

from __future__ import annotations

from typing import Any

import pytest

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Verifier

from .conftest import Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")


def cases(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"kind": "stdio", "cases": [{"stdin": read, "stdout": written} for read, written in pairs]} | more


DOUBLE = cases(("1\n", "2\n"), ("2\n", "4\n"), ("30\n", "60\n"))
ENDS = [
    ("print(int(input()) * 2)", "passed", Outcome.CORRECT),
    ("print(int(input()) + 1)", "wrong_answer", Outcome.WRONG),
    ("print(int(input()) * 2", "compile_error", Outcome.WRONG),
    ("print(2); 1 / 0", "runtime_error", Outcome.CRASHED),
    ("print(2)\nimport sys; sys.exit(3)", "runtime_error", Outcome.CRASHED),
    ("print(2)\nx = bytearray(1 << 40)", "memory_limit", Outcome.CRASHED),
    ("while True: print(2)", "output_limit", Outcome.CRASHED),
    ("exec('1 +')", "runtime_error", Outcome.CRASHED),
]


@pytest.mark.parametrize(("code", "status", "outcome"), ENDS, ids=[case[0] for case in ENDS])
async def test_each_end_of_a_program_has_its_status(code: str, status: str, outcome: Outcome, ask: Ask) -> None:
    verdict = await ask(code, DOUBLE)
    assert (verdict.detail["status"], verdict.outcome) == (status, outcome), verdict
    assert verdict.score == (1.0 if status == "passed" else 0.0)


async def test_a_program_that_never_ends_is_a_timeout_and_a_deadline_shortens_its_time(verifier: Verifier) -> None:
    item = Item("```python\nwhile True: pass\n```", DOUBLE)
    (verdict,) = await verifier.verify([item], deadline_s=0.3)
    assert (verdict.outcome, verdict.score) == (Outcome.TIMEOUT, 0.0)
    assert verdict.elapsed_s < 3


async def test_the_first_failed_case_is_told_and_ends_the_item(ask: Ask) -> None:
    verdict = await ask("n = int(input())\nprint(n * 2 if n != 2 else 5)", DOUBLE)
    assert (verdict.score, verdict.detail["passed"], verdict.detail["total"]) == (0.0, 1, 3)
    assert [case["status"] for case in verdict.detail["cases"]] == ["passed", "wrong_answer"]
    assert verdict.detail["cases"][1]["stdout"] == "5"


async def test_partial_credit_is_the_share_of_all_cases() -> None:
    async with get_verifier("code", partial_credit=True) as partial:
        item = Item("```python\nn = int(input())\nprint(n * 2 if n != 2 else 5)\n```", DOUBLE)
        nothing = Item("```python\nprint(5)\n```", DOUBLE)
        some, none = await partial.verify([item, nothing])
    assert (some.outcome, none.outcome, none.score) == (Outcome.PARTIAL, Outcome.WRONG, 0.0)
    assert some.score == pytest.approx(2 / 3)
    assert len(some.detail["cases"]) == 3


async def test_the_reference_says_how_output_is_compared(ask: Ask) -> None:
    assert (await ask("print('1   2 ')", cases(("", "1 2\n")))).score == 0.0
    assert (await ask("print('1   2 ')", cases(("", "1 2\n"), compare="tokens"))).score == 1.0
    assert (await ask("print(0.3333)", cases(("", "0.33333\n"), compare="numbers", tolerance=0.001))).score == 1.0
    assert (await ask("print('2')", cases(("", "2"), compare="exact"))).score == 0.0


async def test_livecodebench_programs_have_the_usual_imports(ask: Ask) -> None:
    record = {
        "kind": "livecodebench",
        "public_test_cases": [{"input": "3 1 2", "output": "1.50\n[1, 2, 3]", "testtype": "stdin"}],
    }
    code = "h = list(map(int, input().split()))\nheapify(h)\nprint(1.5)\nprint([heappop(h) for _ in range(len(h))])"
    assert (await ask(code, record)).score == 1.0
    assert (await ask("from __future__ import annotations\n" + code, record)).score == 0.0


async def test_much_input_and_surrogates_are_no_trouble(ask: Ask) -> None:
    lines = "\n".join(map(str, range(200_000)))
    assert (await ask("import sys\nprint(sum(map(int, sys.stdin)))", cases((lines, "19999900000")))).score == 1.0
    assert (await ask("print(ascii('\ud800'))", cases(("", "x")))).score == 0.0


SUMS = {
    "cpp": "#include <bits/stdc++.h>\nint main(){long long a,b;std::cin>>a>>b;std::cout<<a+b<<std::endl;}",
    "javascript": "const [a,b]=require('fs').readFileSync(0,'utf8').trim().split(/\\s+/).map(Number);console.log(a+b);",
    "bash": 'read a b; echo "$((a + b))"',
    "python": "print(sum(map(int, input().split())))",
}
MARKS = {"cpp": [pytest.mark.needs_gxx], "javascript": [pytest.mark.needs_node]}
WRONG = {
    "cpp": [("int main(){ return 0 }", "compile_error"), ("int main(){ int *p = 0; return *p; }", "runtime_error")],
    "javascript": [("console.log(1)", "wrong_answer"), ("throw new Error('x')", "runtime_error")],
    "bash": [("echo 1", "wrong_answer"), ("exit 3", "runtime_error")],
    "python": [("print(1)", "wrong_answer")],
}


@pytest.mark.parametrize("language", [pytest.param(each, marks=MARKS.get(each, ())) for each in sorted(SUMS)])
async def test_programs_in_other_languages_pass_and_fail(language: str, verifier: Verifier) -> None:
    reference = cases(("1 2\n", "3\n"), ("30 40\n", "70\n"), language=language)
    items = [Item(f"```{language}\n{SUMS[language]}\n```", reference)]
    items += [Item(f"```{language}\n{code}\n```", reference) for code, _ in WRONG[language]]
    verdicts = await verifier.verify(items)
    expected = ["passed", *(status for _, status in WRONG[language])]
    assert [verdict.detail["status"] for verdict in verdicts] == expected, verdicts


async def test_a_block_of_another_language_is_no_answer(verifier: Verifier) -> None:
    (verdict,) = await verifier.verify([Item(f"```bash\n{SUMS['bash']}\n```", cases(("1 2", "3"), language="python"))])
    assert verdict.outcome is Outcome.UNPARSABLE


@pytest.mark.needs_gxx
async def test_what_compiling_takes_is_bounded_and_it_sees_no_file_of_the_host(verifier: Verifier) -> None:
    reference = cases(("", "x"), language="cpp")
    peek = '#include "/etc/shadow"\nint main(){}'
    huge = "char a[1ull << 40] = {1}; int main(){}"
    seen, large = await verifier.verify([Item(f"```cpp\n{code}\n```", reference) for code in (peek, huge)])
    assert seen.detail["status"] == large.detail["status"] == "compile_error"
    assert "root:" not in str(seen)


async def test_a_language_of_ones_own_is_a_configuration_and_a_missing_program_is_a_failure() -> None:
    reverse = {"file": "main.sed", "run": ["sed", "-f", "main.sed"], "fences": ["stream"]}
    missing = {"file": "main.x", "run": ["no-such-interpreter", "main.x"]}
    async with get_verifier("code", language="sed", languages={"sed": reverse, "x": missing}) as verifier:
        right, wrong, absent, unknown = await verifier.verify(
            [
                Item("```stream\ns/a/b/\n```", cases(("aa\n", "ba\n"))),
                Item("```sed\ns/a/c/\n```", cases(("aa\n", "ba\n"))),
                Item("```x\n1\n```", cases(("", "1"), language="x")),
                Item("```x\n1\n```", cases(("", "1"), language="fortran")),
            ]
        )
    assert (right.score, wrong.score) == (1.0, 0.0)
    assert absent.failure is not None
    assert "no-such-interpreter" in absent.failure.message
    assert unknown.outcome is Outcome.BAD_REFERENCE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "process"}, "unsafe: true"),
        ({"backend": "docker"}, "image"),
        ({"language": "pyton"}, "python"),
        ({"languages": {"x": {"file": "a", "compile": ["cc"]}}}, "artifact"),
        ({"limits": {"wall_s": 0}}, "wall_s"),
        ({"limits": {"wal_s": 1}}, "wal_s"),
    ],
)
async def test_options_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(QuintainError, match=said) as refused:
        get_verifier("code", **options)
    assert "\n" not in str(refused.value)


async def test_the_process_backend_judges_the_same_when_it_is_asked_for_by_name() -> None:
    async with get_verifier("code", backend="process", unsafe=True) as verifier:
        function = {"kind": "function", "entry_point": "f", "tests": "def check(f): assert f(1) == 2"}
        answers = ["def f(x): return 2", "def f(x): return 3"]
        items = [Item(f"```python\n{code}\n```", function) for code in answers]
        items += [Item(f"```python\nprint({code})\n```", cases(("", "2"))) for code in ("2", "3")]
        verdicts = await verifier.verify(items)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0], verdicts
