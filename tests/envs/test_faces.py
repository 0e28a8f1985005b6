"""One environment, every way to it: in process, over HTTP, token by token, through the gateway, `eval --endpoint`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintain.calling.chat import ChatEndpoint
from quintain.cli import main
from quintain.codec import to_builtins
from quintain.envs import Action, LocalClient, Message, Task, assistant, resolve
from quintain.envs.builtin.textarena import begun
from quintain.failure import Stage
from quintain.messages import FunctionCall, ToolCall
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.endpoint import run_chat_episode
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode
from quintain.trajectory import Trajectory, to_segments

from ..fake_engine import FakeEngine
from ..launch.fake_openai import fake_openai
from ..rollout.chat_tokenizers import byte_level, templates
from ..rollout.gateway.stage import staged

Policy = Callable[[Task], list[Message]]


def calling(*calls: tuple[str, Mapping[str, Any]], says: str | None = None) -> Message:
    """A turn that calls tools."""
    made = (
        ToolCall(f"call_{n}", FunctionCall(name, json.dumps(arguments))) for n, (name, arguments) in enumerate(calls)
    )
    return Message("assistant", says, tuple(made))


@dataclass(frozen=True)
class Game:
    """A scripted policy for the first task held out, and what it earns."""

    env: str
    policy: Policy
    reward: float
    options: Mapping[str, Any] = field(default_factory=dict)


def calculates(task: Task) -> list[Message]:
    return [
        calling(("calculate", {"expression": task.id}), ("calc", {"expression": "1"})),
        calling(("calculate", {"expression": f"({task.id}) / 1"}), says="Again."),
        assistant(f"It is {task.reference}."),
    ]


def guesses(task: Task) -> list[Message]:
    thing = task.reference["thing"]
    return [
        assistant(f"Is it {thing[0]} or {thing[1]}?"),
        assistant("What is it?"),
        assistant(f"Is it the {' '.join(thing)}?"),
    ]


def serves(task: Task) -> list[Message]:
    name, arguments = task.reference["deed"]
    return [
        assistant("What is your e-mail address?"),
        calling(("find_orders", {"email": task.reference["email"]}), ("find_order", {})),
        calling((name, arguments)),
        assistant("It is done."),
    ]


def works(task: Task) -> list[Message]:
    ((file, text),) = task.reference["files"].items()
    return [
        calling(("shell", {"command": f"echo '{text}' > x; ls"}), ("write_file", {"path": "../y", "content": ""})),
        calling(("shell", {"command": f"mv x {file}"})),
        assistant("It is done."),
    ]


def gives_up(task: Task) -> list[Message]:
    return [assistant(f"Is it a {task.reference['thing'][-1]}?")] * 2


def crosses(task: Task) -> list[Message]:
    words = ["hm", *["down", "down", "right", "right", "down", "right"]]
    return [assistant(f"I go {word}") for word in words]


def adds(task: Task) -> list[Message]:
    return [
        calling(("add", {"a": 20, "b": 22}), ("ad", {}), ("fail", {"how": "raise"})),
        assistant(f"It is {task.reference}."),
    ]


def finds(task: Task) -> list[Message]:
    game = begun(NUMBER["game"], 1, task.seed)
    while hasattr(game, "env"):
        game = game.env
    number = game.state.game_state["game_number"]
    return [assistant(f"[{guess}]") for guess in ("x", number % 20 + 1, number)]


SAMPLES = Path(__file__).with_name("samples.py")
NUMBER = {"game": "GuessTheNumber-v0"}
LAKE = {"game": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}

GAMES = [
    Game("gymnasium", crosses, 1.0, LAKE),
    Game("textarena", finds, 1.0, NUMBER),
    Game(f"{SAMPLES}:AddingServer", adds, 1.0),
    Game("math", lambda task: [assistant(f"So it is {task.reference}.")], 1.0, {"word": True, "operations": "+-*"}),
    Game("calculator", calculates, 1.0),
    Game("twenty_questions", guesses, 1.0),
    Game("twenty_questions", gives_up, 0.2 / 3, {"max_turns": 2}),
    Game("shop", serves, 1.0),
    Game("shell", works, 1.0, {"kinds": ["write"], "shells": 2}),
    Game("shell", lambda task: [assistant("It is done.")], 0.0, {"kinds": ["program"], "shells": 2}),
    Game("shop", lambda task: [assistant("No.")], 0.0),
]


def as_hermes(message: Message) -> str:
    """A turn as Qwen's models write it."""
    written = [
        f'<tool_call>\n{{"name": "{made.function.name}", "arguments": {made.function.arguments}}}\n</tool_call>'
        for made in message.tool_calls
    ]
    return "\n".join(filter(None, [message.text, *written]))


def engine_of(turns: list[Message], tokenizer: Any) -> FakeEngine:
    """An engine that says `turns`, one after the other."""
    left = iter(turns)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return FakeEngine(
        lambda prompt, sampling: [*tokenizer.encode(as_hermes(next(left)), add_special_tokens=False), end],
        words=len(tokenizer),
    )


@pytest.mark.parametrize("game", GAMES, ids=lambda game: f"{Path(game.env).name}-{game.reward:.2f}")
def test_a_scripted_policy_earns_the_same_however_the_environment_is_reached(game, serve, capsys):
    options = dict(game.options)
    server = serve(game.env, options=options)

    async def played(client: Any, turns: list[Message]) -> tuple[list[str], float]:
        env = client.episode()
        said = list((await env.reset(client.tasks("heldout")[0], seed=0)).messages)
        earned = 0.0
        for turn in turns:
            step = await env.step(Action(turn))
            said += step.observation.messages
            earned += step.reward
        assert step.ended
        await env.close()
        return [message.text for message in said], earned

    async def everywhere() -> list[Message]:
        async with LocalClient(resolve(game.env), options) as local, server.client() as remote:
            task = local.tasks("heldout")[0]
            turns = game.policy(task)
            said, earned = await played(local, turns)
            assert earned == pytest.approx(game.reward)
            assert await played(remote, turns) == (said, earned)

            tokenizer = byte_level(templates()["qwen3_instruct_2507"])
            chat = TemplateChat(tokenizer)
            spec = EpisodeSpec("e", "g", task, 0, 0, 1, Sampling(512), max_turns=40, max_length=16384)
            exact = await run_episode(spec, make_env=local.episode, engine=engine_of(turns, tokenizer), chat=chat)
            assert (exact.failure, exact.reward, heard(exact)) == (None, earned, said)
            learns_only_what_it_said(exact, tokenizer, turns)

            async with staged(engine_of(turns, tokenizer), chat=chat, sampling=Sampling(512)) as stage:
                session, client = await stage.open(task=task.id)
                endpoint = ChatEndpoint(
                    str(client.base_url),
                    {"model": "policy"},
                    who="the gateway",
                    stage=Stage.GENERATE,
                    token=client.api_key,
                    timeout_s=30,
                    retries=0,
                    max_reply_bytes=1 << 20,
                )
                through = await run_chat_episode(spec, make_env=remote.episode, endpoint=endpoint)
                await endpoint.close()
                recorded = await stage.reward(session, through.reward)
            assert (through.failure, through.reward, heard(through)) == (None, earned, said)
            assert recorded.reward == earned
            learns_only_what_it_said(recorded, tokenizer, turns)
            return turns

    turns = asyncio.run(everywhere())

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        turn = turns[sum(message["role"] == "assistant" for message in request["messages"])]
        return {"content": turn.content, "tool_calls": to_builtins(turn.tool_calls)}

    with fake_openai(reply) as fake:
        command = ["eval", f"--env={server.url}", f"--endpoint={fake.url}", "--model=m", "-n", "1", "--json"]
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--split=heldout"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["mean_reward"] == pytest.approx(game.reward)


def heard(trajectory: Trajectory) -> list[str]:
    return [message.text for message in trajectory.prompt] + [
        message.text for turn in trajectory.turns for message in turn.observation
    ]


def learns_only_what_it_said(trajectory: Trajectory, tokenizer: Any, turns: list[Message]) -> None:
    """One segment, whose trained tokens are the policy's own, to the last one."""
    (segment,) = to_segments(trajectory)
    sampled = np.concatenate([turn.output_ids for turn in trajectory.turns])
    assert np.array_equal(segment.ids[segment.mask.astype(bool)], sampled)
    assert tokenizer.decode(sampled) == "".join(as_hermes(turn) + "<|im_end|>" for turn in turns)
