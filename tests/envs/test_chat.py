"""Conversations: who says what when, how they end, what they are worth, and users that do not answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs import (
    Action,
    ChatEnv,
    LocalClient,
    Message,
    ScriptedUser,
    Task,
    TwentyQuestionsEnv,
    User,
    UserModel,
    UserReply,
    check_environment,
    system,
    tool,
    transcript,
    user,
)
from quintain.envs.options import bind
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, ToolCall
from quintain.thinking import text_after_thinking

from ..launch.fake_openai import fake_openai

ONE = Task("one", reference="blue")


class Talk(ChatEnv):
    """Find out the colour."""

    max_turns = 3

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [ONE]

    def user(self, task: Task, *, seed: int) -> User:
        return ScriptedUser("Guess a colour.", "Wrong.", "Wrong again.")

    def persona(self, task: Task) -> str:
        return f"You think of the colour {task.reference}."

    @tool
    def hint(self) -> str:
        """Give a hint."""
        return "Not red."


class Minded(User):
    """Has a goal, and little patience."""

    async def reply(self, history: Sequence[Message]) -> UserReply:
        said = history[-1].text if history else ""
        if "blue" in said:
            return UserReply("That is it!", "goal")
        return UserReply("", "left") if "red" in said else UserReply("Guess a colour.")


class Ruled(Talk):
    """The same with a user that follows rules."""

    def user(self, task: Task, *, seed: int) -> User:
        return Minded()


async def played(env: ChatEnv, *said: str, task: Task = ONE) -> list[Any]:
    """The first observation, and a step for each of `said`."""
    first = await env.reset(task, seed=0)
    return [first, *[await env.step(Action.text(text)) for text in said]]


def texts(step: Any) -> list[str]:
    observation = getattr(step, "observation", step)
    return [message.text for message in observation.messages if message.role == "user"]


async def test_a_scripted_user_says_its_lines_and_leaves_after_the_answer_to_the_last():
    first, *steps = await played(Talk(system="Guess."), "Red?", "Green?", "Pink?")
    assert first.messages == (system("Guess."), user("Guess a colour."))
    assert [texts(step) for step in steps] == [["Wrong."], ["Wrong again."], []]
    assert [step.terminated for step in steps] == [False, False, True]
    assert (steps[-1].reward, steps[-1].info["end"]) == (0.0, "left")


@pytest.mark.parametrize(
    ("said", "reward", "end", "told"),
    [
        (["Is it blue?"], 1.0, "goal", ["That is it!"]),
        (["Green?", "blue"], 1.0, "goal", ["That is it!"]),
        (["It is red."], 0.0, "left", []),
        (["Green?", "Pink?", "Grey?"], 0.0, "turns", ["Guess a colour."]),
        (["Green?", "Pink?", "blue"], 1.0, "goal", ["That is it!"]),
    ],
)
async def test_a_conversation_ends_with_the_goal_the_user_or_the_last_turn(said, reward, end, told):
    *_, last = await played(Ruled(), *said)
    assert (last.reward, last.info["end"], texts(last)) == (reward, end, told)
    assert (last.terminated, last.truncated) == (end != "turns", end == "turns")


async def test_a_user_hears_what_is_said_to_it_and_neither_prompts_nor_calls():
    heard: list[Any] = []

    class Hears(User):
        async def reply(self, history: Sequence[Message]) -> UserReply:
            heard.append([message.text for message in history])
            return UserReply("Hm.")

    env = type("Overheard", (Talk,), {"user": lambda self, task, seed: Hears()})(system="It is blue.")
    await env.reset(ONE, seed=0)
    await env.step(Action(Message("assistant", "I look.", (ToolCall("c", FunctionCall("hint", "{}")),))))
    await env.step(Action.text("Blue?"))
    assert heard == [[], ["Hm.", "Blue?"]]


async def test_calls_are_answered_by_the_tools_and_take_no_turn_of_the_conversation():
    env = Ruled(max_turns=1)
    await env.reset(ONE, seed=0)
    called = Message("assistant", None, (ToolCall("c", FunctionCall("hint", "{}")),))
    step = await env.step(Action(called))
    assert ([message.text for message in step.observation.messages], step.ended) == (["Not red."], False)
    step = await env.step(Action.text("blue"))
    assert (step.reward, step.info["end"]) == (1.0, "goal")


async def test_a_prompt_that_ends_with_a_users_words_begins_the_conversation():
    prompt = (system("It is blue."), user("What do you say?"))
    first, step = await played(Ruled(), "blue", task=Task("x", prompt))
    assert first.messages == prompt
    assert step.reward == 1.0


async def test_a_verifier_judges_the_whole_conversation_and_its_failure_is_none_of_the_rewards():
    class Judged(Ruled):
        verifier = "regex"

    told = r'(?s)^\{"role": "user", .*"Green\?".*\n.*"blue!".*\n\{"role": "user", "content": "That is it!"\}$'
    env = Judged()
    try:
        for reference, reward in ((told, 1.0), ("pink", 0.0)):
            *_, last = await played(env, "Green?", "blue!", task=Task("x", reference=reference))
            assert last.reward == reward
        with pytest.raises(FailureError) as error:
            await played(env, "blue", task=Task("x", reference="("))
        assert error.value.failure.stage is Stage.VERIFY
    finally:
        await env.close()


MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["user", "assistant", "system"]),
        st.text()
        | st.sampled_from(["</think>", "＜/think＞", "[/THINK]", "◁/think▷", 'x"}\n{"role": "user"', "<think>"]),
    ),
    min_size=1,
    max_size=5,
)


@given(MESSAGES)
def test_nobody_says_a_line_of_somebody_elses_in_a_transcript_and_all_of_it_is_read(history):
    lines = transcript(history).splitlines()
    assert [json.loads(line) for line in lines] == [{"role": m.role, "content": m.text} for m in history]
    assert text_after_thinking(transcript(history)) == transcript(history)


def test_a_transcript_has_the_calls():
    called = Message("assistant", None, (ToolCall("c", FunctionCall("hint", '{"a": [1]}')),))
    assert json.loads(transcript([called])) == {"role": "assistant", "content": "", "calls": 'hint {"a": [1]}'}


async def test_a_language_model_plays_the_user_with_the_roles_the_other_way_round():
    lines = ["<think>hm</think>Which colour?", "No, not [GOAL].", "Yes! [GOAL]"]

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        return {"content": lines[sum(m["role"] == "assistant" for m in request["messages"])]}

    with fake_openai(reply, key="k") as fake, pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER_KEY", "k")
        options = {"user_model": {"url": fake.url, "model": "m", "token_env": "USER_KEY"}}
        async with LocalClient(Talk, options) as client:
            first, *steps = await played(client.episode(), "[GOAL]", "Blue?")
    assert texts(first) == ["Which colour?"]
    assert [texts(step) for step in steps] == [["No, not [GOAL]."], ["Yes!"]]
    assert [(step.reward, step.ended) for step in steps] == [(0.0, False), (1.0, True)]
    told = [(message["role"], message["content"]) for message in fake.asked[-1]["messages"]]
    assert told[0][0] == "system"
    assert told[0][1].endswith("You think of the colour blue.")
    assert told[1:] == [
        ("user", "Hello, how can I help you?"),
        ("assistant", "Which colour?"),
        ("user", "[GOAL]"),
        ("assistant", "No, not [GOAL]."),
        ("user", "Blue?"),
    ]


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ((401, {}), FailureKind.REJECTED),
        ((500, {}), FailureKind.CRASHED),
        ({"content": None}, FailureKind.INVALID),
        ({"content": "  "}, FailureKind.INVALID),
        ({"content": "<think>for ever"}, FailureKind.INVALID),
        ("nobody", FailureKind.UNREACHABLE),
    ],
    ids=str,
)
async def test_a_users_model_that_does_not_answer_is_a_failure_and_no_reward(says, kind):
    def reply(request: dict[str, Any]) -> Any:
        return {"content": "Guess."} if len(request["messages"]) == 2 else says

    with fake_openai(reply) as fake:
        url = fake.url
        if says != "nobody":
            options = {"user_model": {"url": url, "model": "m", "retries": 0}}
            async with LocalClient(Talk, options) as client:
                with pytest.raises(FailureError) as error:
                    await played(client.episode(), "Blue?")
    if says == "nobody":
        async with LocalClient(Talk, {"user_model": {"url": url, "model": "m", "retries": 0}}) as client:
            with pytest.raises(FailureError) as error:
                await played(client.episode())
    assert error.value.failure.kind is kind
    assert "the user's model" in error.value.failure.message


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (UserReply(), "a user says something, or ends the conversation"),
        (UserReply("", "goal"), None),
    ],
)
async def test_a_user_that_says_nothing_and_stays_is_a_failure(reply, says):
    class Silent(User):
        async def reply(self, history: Sequence[Message]) -> UserReply:
            return UserReply("Hello") if not history else reply

    env = type("Quiet", (Talk,), {"user": lambda self, task, seed: Silent()})()
    if says is None:
        assert (await played(env, "Hello"))[-1].reward == 1.0
        return
    with pytest.raises(FailureError, match=says):
        await played(env, "Hello")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_turns": 0}, "Talk's max_turns is at least 1"),
        ({"user_model": {"url": "u", "modle": "m"}}, "Talk's option 'user_model.model': Field required"),
        (
            {"user_model": {"url": "u", "model": "m", "tokens": 1}},
            "Talk's option 'user_model.tokens': Unexpected keyword argument (got 1)",
        ),
    ],
)
def test_a_wrong_option_is_one_line(options, complaint):
    with pytest.raises(QuintainError, match=re.escape(complaint)) as error:
        bind(Talk, options)()
    assert "\n" not in str(error.value)


async def test_a_model_in_a_users_place_needs_its_key_and_an_environment_that_says_whom_it_plays():
    with pytest.raises(QuintainError, match="the environment variable NO_SUCH_KEY is not set"):
        await Talk(user_model=UserModel("http://x", "m", token_env="NO_SUCH_KEY")).reset(ONE, seed=0)
    with pytest.raises(QuintainError, match="TwentyQuestionsEnv cannot take a user_model"):
        await TwentyQuestionsEnv(user_model=UserModel("http://x", "m")).reset(THING, seed=0)


@pytest.mark.parametrize("cls", [Talk, Ruled, TwentyQuestionsEnv])
async def test_a_conversation_is_a_sound_environment(cls):
    assert await check_environment(cls) == []


THING = Task(
    "thing",
    reference={"world": {"colour": ["red", "blue"], "kind": ["box", "cup"]}, "thing": ["blue", "cup"]},
)


@pytest.mark.parametrize(
    ("said", "answers", "reward"),
    [
        (["Is it the blue cup?"], ["Yes! It is the blue cup."], 1.0),
        (["Is it a box?", "Blue?", "the BLUE cup"], ["No.", "Yes.", "Yes! It is the blue cup."], 1.0),
        (["Is it a red cup?", "red or blue?", "The red box?"], ["No.", "Yes.", "No."], 0.2 * 0.5),
        (["Is it a box or a cup?", "Is it red? Blue? A box? A cup?", "?"], ["Yes.", "Yes.", "Ask"], 0.0),
        (["It isn't the red box, is it?", "Is it not red?", "Neither red nor a box?"], ["Ask", "Ask", "Ask"], 0.0),
        (["reddish boxes", "", "a large one, yes or no?"], ["Ask", "Ask", "Ask"], 0.0),
    ],
)
async def test_a_question_is_answered_by_the_values_it_names_and_a_guess_names_one_of_each(said, answers, reward):
    first, *steps = await played(TwentyQuestionsEnv(max_turns=3), *said, task=THING)
    assert "Its colour is red or blue. Its kind is box or cup." in texts(first)[0]
    assert "You have 3 questions" in texts(first)[0]
    assert all(texts(step)[0].startswith(answer) for step, answer in zip(steps, answers, strict=True))
    assert steps[-1].reward == pytest.approx(reward)
    assert steps[-1].ended


def test_things_are_generated_seeded_and_never_those_held_out():
    heldout = {task.id for task in TwentyQuestionsEnv.tasks("heldout")}
    train = TwentyQuestionsEnv.tasks("train")
    asked = [train[n].id for n in range(300)]
    assert asked == [TwentyQuestionsEnv.tasks("train")[n].id for n in range(300)]
    assert len(heldout) == 200
    assert not heldout & set(asked)
    few = TwentyQuestionsEnv.tasks("heldout", properties=1, values=2, heldout=55)
    assert len({json.dumps(task.reference) for task in few}) == 55
    with pytest.raises(QuintainError, match="properties are 1 to 4 and values 2 to 8, not 5 and 4"):
        TwentyQuestionsEnv.tasks("train", properties=5)
