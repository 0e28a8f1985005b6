"""The math environment: its questions, its splits and its rewards."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs import Action, FailureError, LocalClient, MathEnv, Task, user
from quintain.envs.builtin.numbered import draw, hashed, nth_without, numbered
from quintain.failure import QuintainError
from quintain.task import EndlessTasks


def questions(source, count):
    return [source[i].prompt[0].content for i in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_never_asks_a_held_out_question(seed):
    heldout = MathEnv.tasks("heldout", seed=seed)
    asked = set(questions(MathEnv.tasks("train", seed=seed), 6000))
    hidden = set(questions(heldout, len(heldout)))
    assert len(heldout) == len(hidden) == 200
    assert not asked & hidden
    assert len(asked) == 700  # all the other ordered questions do come


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_reference_is_the_answer_to_its_question(split):
    source = MathEnv.tasks(split, operations="+-*", low=0, high=12, heldout=100)
    for i in range(100):
        sum_of = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\?", source[i].prompt[0].content)
        a, sign, b = int(sum_of[1]), sum_of[2], int(sum_of[3])
        assert source[i].reference == str({"+": a + b, "-": a - b, "*": a * b}[sign])
        assert min(a, b) >= 0
        assert max(a, b) <= 12


def test_the_same_seed_gives_the_same_tasks_on_every_machine():
    # written down, so that a change of Python or of the code is noticed
    assert questions(MathEnv.tasks("train"), 3) == ["What is 12 + 23?", "What is 14 + 11?", "What is 12 + 2?"]
    assert questions(MathEnv.tasks("heldout"), 2) == ["What is 23 + 22?", "What is 19 + 7?"]
    other, default = MathEnv.tasks("train", seed=1), MathEnv.tasks("train")
    assert questions(other, 20) != questions(default, 20)


def test_training_goes_on_for_ever_and_is_addressed_by_index():
    train = MathEnv.tasks("train")
    assert isinstance(train, EndlessTasks)
    assert train[10**12] == train[10**12]


def test_enormous_operands_need_no_memory():
    heldout = MathEnv.tasks("heldout", high=10**9, heldout=3)
    assert len({task.id for task in heldout}) == 3


@given(st.integers(1, 60), st.data())
def test_a_draw_is_of_different_numbers_in_range(below, data):
    count = data.draw(st.integers(0, below))
    drawn = draw(count, below, data.draw(st.text()))
    assert len(drawn) == len(set(drawn)) == count
    assert all(0 <= number < below for number in drawn)


@given(st.sets(st.integers(0, 40)), st.integers(0, 60))
def test_numbers_without_the_skipped_ones_are_counted_right(skipped, n):
    left = [number for number in range(120) if number not in skipped]
    assert nth_without(sorted(skipped), n) == left[n]


def test_hashed_numbers_are_spread_evenly():
    counts = [0] * 10
    for i in range(10_000):
        counts[hashed(f"key {i}", 10)] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts)
    assert chi_square < 27.9  # 9 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"operations": "/"}, "operations must be some of + - *, each once, not '/'"),
        ({"operations": "++"}, "operations must be some of + - *"),
        ({"low": 5, "high": 4}, "low must not be more than high, but 5 > 4"),
        ({"heldout": 900}, "heldout must be at least 1 and leave some of the 900 tasks, not be 900"),
        ({"heldout": 0}, "heldout must be at least 1 and leave some of the 900 tasks, not be 0"),
    ],
)
def test_a_wrong_option_is_one_line(options, complaint):
    with pytest.raises(QuintainError, match=re.escape(complaint)):
        MathEnv.tasks("train", **options)


async def test_a_correct_answer_is_worth_one_and_any_other_nothing():
    async with LocalClient(MathEnv) as client:
        task = client.tasks("train")[0]
        rewards = {}
        for answer in (task.reference, f"It is {task.reference}.", "1000", "no idea", ""):
            env = client.episode()
            await env.reset(task, seed=0)
            step = await env.step(Action.text(answer))
            assert step.terminated
            rewards[answer] = step.reward
    assert list(rewards.values()) == [1.0, 1.0, 0.0, 0.0, 0.0]


async def test_the_system_prompt_is_an_option():
    async with LocalClient(MathEnv, {"system": "Be brief."}) as client:
        observation = await client.episode().reset(client.tasks("train")[0], seed=0)
    assert [message.role for message in observation.messages] == ["system", "user"]
    assert observation.messages[0].content == "Be brief."


async def test_a_reference_that_cannot_be_used_is_a_failure_and_no_reward():
    async with LocalClient(MathEnv) as client:
        env = client.episode()
        await env.reset(Task("bad", (user("What?"),), {"no": "reference"}), seed=0)
        with pytest.raises(FailureError):
            await env.step(Action.text("5"))


def test_number_of_questions_is_what_combinatorics_says():
    heldout = MathEnv.tasks("heldout", operations="+*", low=1, high=4, heldout=31)
    train = MathEnv.tasks("train", operations="+*", low=1, high=4, heldout=31)
    assert len(heldout) == 2 * math.prod((4, 4)) - 1
    assert len(set(questions(train, 50))) == 1


READINGS = {
    "+": r"finds (\d+) more|gives \w+ (\d+) \w+\.|buys (\d+)|gets another (\d+)|(\d+) more \w+ come",
    "-": r"loses (\d+)|gives (\d+) \w+ to a friend|(\d+) of the \w+ are lost|sells (\d+)|throws (\d+)",
    "*": r"makes (\d+) times|trades every one of them for (\d+)|each of the \w+ into (\d+)|has (\d+) times as many",
}


def answer_of(story: str) -> int:
    """The answer to a word problem, by reading it sentence by sentence."""
    opening, *told, asked = re.split(r"(?<=[.?]) ", story)
    first = count = int(re.findall(r"\d+", opening)[0])
    for sentence in told:
        ((operation, n),) = (
            (operation, int(next(filter(None, found.groups()))))
            for operation, pattern in READINGS.items()
            if (found := re.search(pattern, sentence))
        )
        count = {"+": count + n, "-": count - n, "*": count * n}[operation]
        assert count >= 0, story
    return count - first if "more" in asked or "grown" in asked else count


@given(
    st.sampled_from(["+", "-", "*", "+-", "+-*"]), st.integers(0, 9), st.integers(0, 40), st.integers(1, 8), st.data()
)
def test_word_problems_are_answered_by_what_they_tell(operations, low, width, steps, data):
    train = MathEnv.tasks("train", operations=operations, low=low, high=low + width, word=True, steps=steps, heldout=1)
    task = train[data.draw(st.integers(0, 10**6), label="index")]
    assert task.reference == str(answer_of(task.prompt[0].text)), task.prompt[0].text
    assert not re.search(r"[{}]|\b[a-z]+ing [a-z]+ing\b", task.prompt[0].text)


def test_word_problems_come_in_many_shapes_and_never_those_held_out():
    options = {"operations": "+-*", "word": True}
    tasks = MathEnv.tasks("train", **options)
    train = [tasks[n].prompt[0].text for n in range(500)]
    heldout = {task.prompt[0].text for task in MathEnv.tasks("heldout", **options)}
    assert not heldout & set(train)
    assert len({re.sub(r"\d+", "n", text) for text in train}) > 450
    shapes = {"".join(answer for answer in re.findall(r"more|times|gives|now|end|grown", text)) for text in train}
    assert len(shapes) > 30


def test_a_task_that_asks_what_is_held_out_is_not_trained_on_whatever_its_number():
    def task(number):
        return Task(str(number), (user(f"What is {number % 10}?"),), number % 10)

    heldout = {t.reference for t in numbered("heldout", 1000, task, heldout=5, seed=0)}
    train = numbered("train", 1000, task, heldout=5, seed=0)
    assert not heldout & {train[n].reference for n in range(200)}
    with pytest.raises(QuintainError, match="too few different tasks for heldout: 200"):
        numbered("train", 1000, task, heldout=200, seed=0)[0]


@pytest.mark.parametrize(
    ("options", "complaint"), [({"steps": 0}, "steps must be 1 to 8, not 0"), ({"low": -1}, "low must be at least 0")]
)
def test_a_word_problem_that_cannot_be_is_one_line(options, complaint):
    with pytest.raises(QuintainError, match=complaint):
        MathEnv.tasks("train", word=True, **options)
