"""Tool environments: what the policy is told of a tool, what comes of its calls, and whole episodes of a chat model."""

from __future__ import annotations

import json
from datetime import date
from fractions import Fraction
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs import Action, CalculatorEnv, Task, ToolEnv, check_environment, tool, user
from quintain.envs.builtin.calculator import calculated
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.tools import MethodTools, ToolError
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, Message, ToolCall


class Desk(ToolEnv):
    """Every kind of tool."""

    max_calls, max_calls_per_turn = 4, 3

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task("one", (user("Book a table."),), "booked")]

    async def reset(self, task, *, seed):
        self.booked: list[int] = []
        return await super().reset(task, seed=seed)

    @tool
    async def book(self, seats: int, day: date = date(2000, 1, 1), *, area: Literal["in", "out"] = "in") -> dict:
        """Book a table.

        Args:
            seats: How many
                sit there.
            day (date): When.

        Returns:
            The booking.
        """
        self.booked.append(seats)
        return {"seats": seats, "day": day, "area": area}

    @tool
    def copy(self, _words: list[str]) -> str:
        return " ".join(_words)

    @tool
    def fail(self, how: str = "") -> str:
        """Fail."""
        if how == "failure":
            raise FailureError.of(FailureKind.CRASHED, Stage.STEP, "the kitchen burns")
        raise RuntimeError(f"the desk\nis {how}" if how else "")

    def turn_reward(self, results) -> float:
        return -0.25 * sum(result.error is not None for result in results)

    def verdict(self, history):
        return {"booked": float(sum(self.booked)), "messages": float(len(history))}


def call(name: str, arguments: Any = None, id: str = "c") -> ToolCall:
    return ToolCall(id, FunctionCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments or {})))


def calls(*made: ToolCall) -> Action:
    return Action(Message("assistant", None, made))


async def opened(env: ToolEnv) -> ToolEnv:
    await env.reset(env.tasks("train")[0], seed=0)
    return env


async def schemas_of(env: ToolEnv) -> dict[str, Any]:
    return {spec.function.name: spec.function for spec in await MethodTools(env).specs()}


async def test_a_tool_is_described_by_its_hints_and_its_docstring():
    described = await schemas_of(Desk())
    assert list(described) == ["book", "copy", "fail"]
    book = described["book"]
    assert book.description == "Book a table.\n\nReturns:\n    The booking."
    assert book.parameters["required"] == ["seats"]
    assert book.parameters["additionalProperties"] is False
    assert book.parameters["properties"] == {
        "seats": {"type": "integer", "description": "How many sit there."},
        "day": {"type": "string", "format": "date", "description": "When.", "default": "2000-01-01"},
        "area": {"type": "string", "enum": ["in", "out"], "default": "in"},
    }
    assert described["copy"].parameters["properties"] == {"_words": {"type": "array", "items": {"type": "string"}}}


HINTS = {
    int: st.integers(-(2**70), 2**70),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: st.text(st.characters(codec="utf-8")),
    list[int]: st.lists(st.integers(-9, 9), max_size=3),
    dict[str, float]: st.dictionaries(st.text("ab"), st.integers(-9, 9).map(float), max_size=2),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
    int | None: st.none() | st.integers(-9, 9),
}


@given(st.data())
def test_a_tool_takes_the_values_of_its_schema_as_they_are_and_no_others(data):
    hints = data.draw(st.lists(st.sampled_from(list(HINTS)), min_size=1, max_size=4), label="hints")
    parameters = {f"p{number}": hint for number, hint in enumerate(hints)}
    given_: dict[str, Any] = {}

    def take(self, **named):
        given_.update(named)
        return ""

    source = (
        f"def take(self, {', '.join(parameters)}):\n return take_all(self, {', '.join(f'{p}={p}' for p in parameters)})"
    )
    space: dict[str, Any] = {"take_all": take}
    exec(source, space)
    method = space["take"]
    method.__annotations__ = parameters
    box = MethodTools(type("Owner", (), {"take": tool(method)})())
    (described,) = box._tools.values()
    schema = described.spec.function.parameters
    values = {name: data.draw(HINTS[hint], label=name) for name, hint in parameters.items()}
    jsonschema.validate(values, schema)
    assert described.checked(values) == values
    other = values | {"p0": data.draw(st.sampled_from([{"x": []}, [["x"]], "5", True, None, 0.5]), label="other")}
    try:
        jsonschema.validate(other, schema)
    except jsonschema.ValidationError:
        with pytest.raises(ToolError, match="take: p0"):
            described.checked(other)
    for wrong in ({**values, "more": 1}, {name: value for name, value in values.items() if name != "p0"}):
        with pytest.raises(ToolError, match=r"take: (more|p0)"):
            described.checked(wrong)


@pytest.mark.parametrize(
    ("made", "text", "kind"),
    [
        (
            call("bok", {"seats": 2}),
            "there is no tool 'bok': did you mean 'book'? (tools: book, copy, fail)",
            "unknown_tool",
        ),
        (call("reset"), "there is no tool 'reset' (tools: book, copy, fail)", "unknown_tool"),
        (call("book", {"seats": "2"}), "book: seats: Input should be a valid integer (got '2')", "invalid_arguments"),
        (call("book"), "book: seats: Field required", "invalid_arguments"),
        (call("book", {"seats": 2, "copy": 1}), "book: copy: Extra inputs are not permitted", "invalid_arguments"),
        (call("book", '{"seats": "\\ud800"}'), "book: ", "invalid_arguments"),
        (call("book", '{"seats": 2'), "the arguments are no JSON: ", "broken_json"),
        (call("book", '{"seats": NaN}'), "the arguments are no JSON: NaN is no JSON", "broken_json"),
        (call("book", '{"seats": 2, "seats": 3}'), "the arguments are no JSON: a key is given twice", "broken_json"),
        (call("book", "[" * 100_000), "the arguments are no JSON: ", "broken_json"),
        (call("book", "[2]"), "the arguments must be a JSON object", "broken_json"),
        (call("fail", {"how": "closed"}), "fail: RuntimeError: the desk is closed", "raised"),
        (call("fail", ""), "fail: RuntimeError", "raised"),
    ],
)
async def test_a_call_that_is_wrong_is_answered_with_what_is_wrong_and_counted(made, text, kind):
    env = await opened(Desk())
    step = await env.step(calls(made))
    (said,) = step.observation.messages
    assert said.text.startswith(f"error: {text}")
    assert "\n" not in said.text
    assert (said.role, said.tool_call_id, said.name) == ("tool", made.id, made.function.name)
    assert not step.ended
    assert step.info == {"calls": 1, "errors": {kind: 1}}
    assert step.reward == -0.25
    assert env.booked == []


async def test_parallel_calls_are_answered_in_their_order_each_by_its_own_message():
    env = await opened(Desk())
    step = await env.step(
        calls(
            call("book", {"seats": 2, "area": "out"}, "a"),
            call("no", {}, "b"),
            call("copy", {"_words": ["x", "y"]}, "c"),
        )
    )
    said = step.observation.messages
    assert [message.tool_call_id for message in said] == ["a", "b", "c"]
    assert json.loads(said[0].text) == {"seats": 2, "day": "2000-01-01", "area": "out"}
    assert said[2].text == "x y"
    assert step.info == {"calls": 3, "errors": {"unknown_tool": 1}}


async def test_an_answer_without_a_call_ends_the_episode_with_the_verdict_on_all_of_it():
    env = await opened(Desk())
    await env.step(calls(call("book", {"seats": 2})))
    step = await env.step(Action.text("Done."))
    assert (step.terminated, step.truncated) == (True, False)
    assert step.info["rewards"] == {"booked": 2.0, "messages": 4.0}  # the prompt, the call, its result, the answer
    assert step.reward == 6.0
    with pytest.raises(FailureError, match="after the end of the episode"):
        await env.step(Action.text("more"))


async def test_a_call_beyond_a_turns_is_refused_and_the_others_are_made():
    env = await opened(Desk())
    step = await env.step(calls(*(call("book", {"seats": n}) for n in (1, 2, 3, 4))))
    assert env.booked == [1, 2, 3]
    assert step.observation.messages[3].text == "error: a turn has at most 3 calls"
    assert not step.ended
    assert step.info == {"calls": 4, "errors": {"too_many_calls": 1}}


async def test_a_call_beyond_the_episodes_is_refused_and_ends_it_truncated_with_its_verdict():
    env = await opened(Desk())
    for seats in (1, 2):
        assert not (await env.step(calls(call("book", {"seats": seats}), call("no")))).ended
    step = await env.step(calls(call("book", {"seats": 4})))
    assert env.booked == [1, 2]
    assert (step.terminated, step.truncated) == (False, True)
    assert step.observation.messages[0].text == "error: no calls are left: an episode has 4"
    assert step.reward == step.info["rewards"]["booked"] + step.info["rewards"]["messages"] - 0.25


async def test_the_last_call_of_an_episode_still_leaves_a_turn_to_answer_in():
    env = CalculatorEnv(max_calls=1)
    task = CalculatorEnv.tasks("train")[0]
    await env.reset(task, seed=0)
    step = await env.step(calls(call("calculate", {"expression": task.id})))
    assert (step.observation.messages[0].text, step.ended) == (task.reference, False)
    step = await env.step(Action.text(f"It is {task.reference}."))
    await env.close()
    assert (step.reward, step.terminated) == (1.0, True)


async def test_a_failure_that_a_tool_raises_is_one_of_the_episode_and_no_answer():
    env = await opened(Desk())
    with pytest.raises(FailureError, match="the kitchen burns"):
        await env.step(calls(call("fail", {"how": "failure"})))


async def test_an_answer_that_looks_like_a_call_is_counted():
    env = await opened(Desk())
    step = await env.step(Action.text("<tool_call>{oh"))
    assert step.terminated
    assert step.info["unread_calls"] == 1


async def test_tools_may_come_from_elsewhere():
    class Elsewhere:
        async def specs(self):
            return await MethodTools(Desk()).specs()

        async def call(self, name, arguments):
            if name == "book":
                return f"{name} {arguments}"
            raise ToolError("gone", "the line is dead")

        async def close(self):
            closed.append(self)

    closed: list[Any] = []
    env = await opened(type("Far", (Desk,), {"toolbox": lambda self: Elsewhere()})())
    step = await env.step(calls(call("book", {"seats": 9}), call("copy")))
    assert [message.text for message in step.observation.messages] == ["book {'seats': 9}", "error: the line is dead"]
    assert step.info["errors"] == {"gone": 1}
    await env.close()
    assert len(closed) == 1


def bare(self, x):
    """No hint."""


def many(self, *x: int):
    """No names."""


def strange(self, x: np.random.Generator):
    """No schema."""


def unknown(self, x: Nowhere):  # noqa: F821
    """No type."""


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (bare, "the tool 'bare': the parameter 'x' has no type hint"),
        (many, "the tool 'many': the parameter 'x' can have no name in a call"),
        (strange, "the tool 'strange': Unable to generate"),
        (unknown, "the tool 'unknown': its type hints cannot be read: name 'Nowhere' is not defined"),
    ],
)
def test_a_method_that_cannot_be_described_is_one_line(method, complaint):
    with pytest.raises(QuintainError, match=complaint) as error:
        MethodTools(type("Owner", (), {method.__name__: tool(method)})())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"max_calls": 0}, {"max_calls_per_turn": 0}])
def test_limits_are_at_least_one(options):
    with pytest.raises(QuintainError, match="max_calls and max_calls_per_turn are at least 1"):
        Desk(**options)


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["0.1", "1.5", "1_000"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / "]), inner).map(lambda t: f"({''.join(t)})")
        | inner.map(lambda text: f"-{text}")
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_an_expression_is_calculated_exactly_or_refused(expression):
    in_fractions = "".join(
        f"Fraction('{part}')" if part[0].isdigit() else part for part in _numbers_and_signs(expression)
    )
    try:
        expected = eval(in_fractions)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="a division by zero"):
            calculated(expression)
    else:
        assert Fraction(calculated(expression)) == pytest.approx(expected, rel=1e-11)
        if expected.denominator == 1:
            assert calculated(expression) == str(expected.numerator)


def _numbers_and_signs(expression: str) -> list[str]:
    parts: list[str] = []
    for letter in expression:
        if parts and (letter.isdigit() or letter in "._") and parts[-1][0].isdigit():
            parts[-1] += letter
        else:
            parts.append(letter)
    return parts


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "",
            "2 ** 9",
            "9**9**9**9",
            "x",
            "abs(1)",
            "'a' * 9",
            "True",
            "1,000",
            "2 = 2",
            "1e999",
            "3j",
            "5 % 2",
            "1 +",
        ),
        *("[1]", "(" * 199, "1" * 201, "-" * 199 + "x", "*".join(["1e99"] * 30), "5e-324", "__import__('os')", "1\0"),
    ],
)
def test_what_is_no_arithmetic_or_too_large_is_refused_in_one_line(expression):
    with pytest.raises(ValueError, match=r"cannot be|at most 200|more than 300") as error:
        calculated(expression)
    assert "\n" not in str(error.value)


def test_the_questions_are_seeded_large_and_never_those_held_out():
    heldout = {task.id for task in CalculatorEnv.tasks("heldout")}
    train = CalculatorEnv.tasks("train")
    asked = [train[i].id for i in range(300)]
    assert asked == [CalculatorEnv.tasks("train")[i].id for i in range(300)]
    assert asked != [CalculatorEnv.tasks("train", seed=1)[i].id for i in range(300)]
    assert len(heldout) == 200
    assert not heldout & set(asked)
    assert {sign for sign in "+-*" if any(sign in question for question in asked)} == set("+-*")
    assert all(calculated(train[i].id) == train[i].reference for i in range(50))


@pytest.mark.parametrize("cls", [CalculatorEnv, Desk])
async def test_a_tool_environment_is_sound(cls):
    assert await check_environment(cls) == []


@pytest.mark.parametrize("name", ["block", "never"])
async def test_a_tool_that_blocks_or_never_returns_is_a_failed_episode_and_its_place_is_free_again(serve_all, name):
    limits = EnvironmentLimits(step_s=1.0, max_episodes=1)
    async with serve_all("Stuck", limits=limits).client() as client:
        for made in (call(name), call("go")):
            env = client.episode()
            await env.reset(client.tasks("train")[0], seed=0)
            if made.function.name == "go":
                step = await env.step(calls(made))
                assert step.observation.messages[0].text == "gone"
            else:
                with pytest.raises(FailureError) as error:
                    await env.step(calls(made))
                assert error.value.failure.kind is FailureKind.TIMEOUT
            await env.close()
