"""The code environment: its problems, its attempts, its rewards. Programs run in the real sandbox."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from quintain.envs import Action, CodeEnv, EnvClient, FailureError, LocalClient
from quintain.envs.builtin.code import feedback
from quintain.envs.builtin.code_tasks import NoProblem, examples_in, problem_of
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.verdict import Outcome, Verdict

EXAMPLES = Path(__file__).parents[2] / "examples" / "code_problems.jsonl"
SOLUTIONS = {
    "double": "def double(n):\n    return 2 * n",
    "is_even": "def is_even(n):\n    return n % 2 == 0",
    "largest": "def largest(numbers):\n    return max(numbers, default=None)",
    "reverse_words": "def reverse_words(text):\n    return ' '.join(text.split()[::-1])",
    "count_vowels": "def count_vowels(text):\n    return sum(c in 'aeiou' for c in text.lower())",
    "running_sum": "from itertools import accumulate\ndef running_sum(numbers):\n    return list(accumulate(numbers))",
    "sum_lines": "import sys\nprint(sum(map(int, sys.stdin)))",
    "longest_line": "import sys\nprint(max(sys.stdin.read().splitlines(), key=len))",
}


def fenced(code: str) -> Action:
    return Action.text(f"Here it is.\n```python\n{code}\n```")


def problems(split: str = "train", **options):
    return {task.id: task for task in CodeEnv.tasks(split, data=str(EXAMPLES), **{"heldout": 0, **options})}


async def play(task, *attempts: str, **options):
    """The steps of an episode on `task`."""
    env = CodeEnv(**options)
    try:
        await env.reset(task, seed=0)
        return [await env.step(fenced(attempt)) for attempt in attempts]
    finally:
        await env.close()


async def test_every_example_is_solved_by_its_solution_and_by_no_other_ones():
    async with LocalClient(CodeEnv, {"data": str(EXAMPLES), "heldout": 0}) as client:
        names = list(SOLUTIONS)
        for at, task in enumerate(client.tasks("train")):
            right = client.episode()
            await right.reset(task, seed=0)
            assert (await right.step(fenced(SOLUTIONS[task.id]))).reward == 1.0, task.id
            wrong = client.episode()
            await wrong.reset(task, seed=0)
            assert (await wrong.step(fenced(SOLUTIONS[names[at - 1]]))).reward == 0.0, task.id


async def test_a_failed_visible_test_is_told_and_the_next_attempt_is_judged_by_the_hidden_ones():
    task = problems()["largest"]
    first, second = await play(task, "def largest(numbers):\n    return 1", SOLUTIONS["largest"], turns=2)
    assert (first.reward, first.ended) == (0.0, False)
    told = first.observation.messages[0].content
    assert "0 of 1 visible tests" in told
    assert "assert largest([3, 9, 2]) == 9" in told
    assert "-5" not in told  # hidden
    assert (second.reward, second.terminated) == (1.0, True)


async def test_an_attempt_that_passes_the_visible_tests_only_is_final_and_earns_nothing():
    (only,) = await play(problems()["largest"], "def largest(numbers):\n    return 9", turns=3)
    assert (only.reward, only.terminated) == (0.0, True)
    assert "-5" not in repr(only)


async def test_the_last_attempt_is_judged_without_the_visible_tests_word():
    steps = await play(problems()["sum_lines"], "print(1)", "print(2)", turns=2)
    assert "'1\\n2\\n3\\n'" in steps[0].observation.messages[0].content
    assert "'6\\n'" in steps[0].observation.messages[0].content
    assert [step.reward for step in steps] == [0.0, 0.0]
    assert steps[1].observation.messages == ()


async def test_partial_credit_pays_for_the_hidden_tests_passed():
    (step,) = await play(
        problems()["largest"], "def largest(numbers):\n    return max(numbers)", code={"partial_credit": True}
    )
    assert step.reward == pytest.approx(2 / 3)


async def test_an_answer_without_code_is_told_so_and_may_be_tried_again():
    env = CodeEnv(turns=2)
    try:
        await env.reset(problems()["double"], seed=0)
        first = await env.step(Action.text("I do not know.\n```text\nnothing\n```"))
        assert not first.ended
        assert "code" in first.observation.messages[0].content
        assert (await env.step(fenced(SOLUTIONS["double"]))).reward == 1.0
    finally:
        await env.close()


async def test_a_step_after_the_end_is_refused():
    env = CodeEnv()
    with pytest.raises(FailureError, match="before the first reset"):
        await env.step(fenced("pass"))
    try:
        await env.reset(problems()["double"], seed=0)
        await env.step(fenced("pass"))
        with pytest.raises(FailureError, match="after the end"):
            await env.step(fenced("pass"))
    finally:
        await env.close()


async def test_a_sandbox_that_breaks_is_a_failure_and_no_reward():
    class Broken(CodeEnv):
        async def judge(self, name, answer, reference, options=None):
            return Verdict(None, Outcome.CRASHED, Failure.of(FailureKind.CRASHED, Stage.SANDBOX, "gone"))

    env = Broken(turns=2)
    await env.reset(problems()["double"], seed=0)
    with pytest.raises(FailureError, match="gone"):
        await env.step(fenced(SOLUTIONS["double"]))


async def test_it_is_served_over_http_with_every_reference_hidden(serve):
    server = serve("code", options={"data": str(EXAMPLES), "heldout": 2, "turns": 2})
    async with EnvClient(server.url) as client:
        tasks = client.tasks("heldout")
        assert len(tasks) == 2
        for task in tasks:
            assert task.reference is None
            env = client.episode()
            await env.reset(task, seed=0)
            assert (await env.step(fenced(SOLUTIONS[task.id]))).reward == 1.0


def test_held_out_problems_are_never_in_training():
    train, heldout = set(problems("train", heldout=3)), set(problems("heldout", heldout=3))
    assert len(heldout) == 3
    assert train | heldout == set(SOLUTIONS)
    assert not train & heldout
    assert heldout != set(problems("heldout", heldout=3, seed=1))


def test_a_gzipped_file_is_read_as_well(tmp_path):
    packed = tmp_path / "problems.jsonl.gz"
    packed.write_bytes(gzip.compress(EXAMPLES.read_bytes()))
    assert [task.id for task in CodeEnv.tasks("train", data=str(packed), heldout=0)] == list(SOLUTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: expected a problem in JSON"),
        ("[]", "line 1: expected a problem in JSON"),
        ("", "has no problems"),
        ('{"prompt": "p"}', "line 1: it has none of reference, test_list, entry_point and cases"),
        ('{"test_list": ["assert f(1)"]}', "line 1: it has no text or prompt"),
        ('{"text": "t", "test_list": ["1"]}', "its tests call no function"),
        ('\n{"prompt": "p", "entry_point": "f"}', "line 2: it has no test or tests"),
        ('{"question": "q", "cases": []}', "cases is a list"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(QuintainError, match=message) as error:
        CodeEnv.tasks("train", data=str(tmp_path / "p.jsonl"), heldout=0)
    assert "\n" not in str(error.value)


def test_too_many_held_out_problems_and_no_turns_are_refused():
    with pytest.raises(QuintainError, match="heldout must leave some"):
        problems(heldout=8)
    with pytest.raises(QuintainError, match="'turns' is at least 1"):
        CodeEnv(turns=0)


def test_examples_of_a_docstring_become_asserts_only_where_their_results_are_literals():
    shown = [">>> f(1)", "[1, 2]", ">>> f(2)", "<object>", ">>> y = 3", ">>> f('a')", "'b'"]
    prompt = "\n    ".join(["def f(x):", '"""Gives.', *shown, '"""'])
    assert examples_in(prompt) == ["assert f(1) == [1, 2]", "assert f('a') == 'b'"]


def test_mbpp_tests_name_the_function_and_the_first_is_visible():
    row = {
        "text": "Write it.",
        "code": "def helper(x): return x\ndef real(x): return {x}",
        "test_list": ["assert set(real(1)) == {1}", "assert real(2) == {2}"],
        "test_setup_code": "import math",
        "challenge_test_list": ["assert real(3) == {3}"],
    }
    prompt, hidden, visible = problem_of(row)
    assert "assert set(real(1)) == {1}" in prompt
    assert "real(2)" not in prompt
    assert hidden["entry_point"] == "real"
    assert len(hidden["tests"]) == 3
    assert visible["tests"] == ["assert set(real(1)) == {1}"]
    assert visible["setup"] == "import math"


def test_a_records_own_visible_tests_beat_those_made_here():
    row = {"question": "q", "cases": [{"stdin": "1", "stdout": "1"}, {"stdin": "2", "stdout": "2"}]}
    assert problem_of(row)[2]["cases"] == row["cases"][:1]
    assert problem_of(row | {"visible": None})[2] is None
    own = {"kind": "stdio", "cases": [{"stdin": "9", "stdout": "9"}]}
    assert problem_of(row | {"visible": own})[2] == own
    with pytest.raises(NoProblem, match="visible"):
        problem_of(row | {"visible": [1]})


def test_what_is_told_of_a_failed_attempt_is_bounded():
    cases = [{"index": i, "status": "wrong_answer", "message": "x" * 5000} for i in range(50)]
    verdict = Verdict(0.0, Outcome.WRONG, None, 0.0, {"passed": 0, "total": 50, "cases": cases})
    told = feedback(verdict, {"kind": "function", "tests": ["assert f()"] * 50}, 1)
    assert len(told) < 5000
    assert json.dumps(told)
