"""Trajectories in the formats of others: ATIF 1.8 (Harbor's) and OpenEnv's `TrainingTrace`, a document in each line.

What always holds: a document that we write has the exact tokens and log-probabilities, and is read again as the same
chains of tokens, of which the same are trained on; one that another program wrote without tokens is refused, and never
encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from quintain import __version__
from quintain.arrays import Ints, as_ints
from quintain.failure import QuintainError
from quintain.messages import REASONING, Message, user
from quintain.records import read_rows
from quintain.rollout.journal.parquet import Stored, read_trajectories
from quintain.trajectory import Turn, extends, versions_of

Format = Literal["atif", "openenv"]
VERSION: Final = "ATIF-v1.8"
SOURCES: Final = {"system": "system", "user": "user", "tool": "user", "assistant": "agent"}

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A trajectory that was read: chains (ids [L], which of them are trained on [L] bool), and what is known of it, by
    the names of `dataset.where`. It may have `failed`."""

    where: str
    chains: tuple[tuple[Ints, Mask], ...]
    known: Mapping[str, Any]
    failed: bool


def documents(path: Path) -> Iterator[Document]:
    """The documents in the file `path`, one in each line. QuintainError, one line, at the first that has no tokens."""
    for line, row in read_rows(path, "an ATIF document or a TrainingTrace in each line"):
        where = f"{path} line {line}"
        try:
            yield _read(where, row)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise QuintainError(
                f"{where}: expected ATIF 1.x or OpenEnv's TrainingTrace, with the token ids of every call of the model:"
                f" {type(error).__name__}: {error}"
            ) from None


def export(run: Path, out: Path, form: Format) -> tuple[int, int]:
    """Write the trajectories of `run`, a run's folder or a Parquet file, to `out`; (how many, how many without a turn,
    which are left out). QuintainError where they cannot be read or written."""
    count = empty = 0
    draft = out.with_name(f".{out.name}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            for stored in read_trajectories(run):
                if stored.trajectory.turns:
                    file.write(json.dumps(written(stored, form), ensure_ascii=False, allow_nan=False) + "\n")
                    count += 1
                else:
                    empty += 1
        draft.replace(out)
    except OSError as error:
        raise QuintainError(f"cannot write {out}: {error.strerror or error}") from None
    except ValueError as error:
        raise QuintainError(f"{stored.trajectory.id} has a number that JSON has not: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return count, empty


def written(stored: Stored, form: Format) -> dict[str, Any]:
    """A trajectory that has turns as a document that JSON can hold."""
    return _atif(stored) if form == "atif" else _trace(stored)


def about(stored: Stored) -> dict[str, Any]:
    """What is known of a trajectory beside its turns, by the names of `dataset.where`, and where it is from."""
    trajectory = stored.trajectory
    return {
        "reward": trajectory.reward,
        "environment": trajectory.environment,
        "verdict": trajectory.info.get("outcome"),
        "turns": len(trajectory.turns),
        "tokens": trajectory.output_tokens,
        "step": stored.step,
        "ending": str(trajectory.ending),
        **{f"rewards.{name}": value for name, value in trajectory.rewards.items()},
    }


# Writing


def _atif(stored: Stored) -> dict[str, Any]:
    trajectory = stored.trajectory
    steps = [_said(message) for message in trajectory.prompt]
    for turn in trajectory.turns:
        steps += _acted(turn)
    return {
        "schema_version": VERSION,
        "session_id": f"{stored.run}/{trajectory.group}",
        "trajectory_id": trajectory.id,
        "agent": {"name": "quintain", "version": __version__, "extra": {"versions": sorted(versions_of(trajectory))}},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "final_metrics": {
            "total_prompt_tokens": sum(step["metrics"]["prompt_tokens"] for step in steps if "metrics" in step),
            "total_completion_tokens": trajectory.output_tokens,
            "total_steps": len(steps),
        },
        "extra": _extra(stored),
    }


def _extra(stored: Stored) -> dict[str, Any]:
    trajectory = stored.trajectory
    failure = None if trajectory.failure is None else str(trajectory.failure)
    names = ("group", "task", "index", "member", "seed", "task_id")
    return {"run": stored.run, **about(stored), **{name: getattr(trajectory, name) for name in names}} | (
        {} if failure is None else {"failure": failure}
    )


def _said(message: Message) -> dict[str, Any]:
    """A message that the model was shown. What an assistant says there was not sampled."""
    step: dict[str, Any] = {"source": SOURCES[message.role], "message": message.text}
    if message.role == "assistant":
        step |= _spoken(message) | {"is_copied_context": True}
    return step


def _spoken(message: Message) -> dict[str, Any]:
    calls = []
    for call in message.tool_calls:
        asked = _object(call.function.arguments)
        raw = {} if asked is not None else {"extra": {"arguments": call.function.arguments}}
        calls.append({"tool_call_id": call.id, "function_name": call.function.name, "arguments": asked or {}, **raw})
    thought = {} if message.reasoning is None else {"reasoning_content": message.reasoning}
    return {**thought, **({"tool_calls": calls} if calls else {})}


def _object(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _acted(turn: Turn) -> Iterator[dict[str, Any]]:
    """The step of a turn, what its tools answered within, and a step for whatever else was said to it."""
    prompt, calls = turn.prompt_ids, {call.id for call in turn.message.tool_calls}
    answers = [message for message in turn.observation if message.role == "tool" and message.tool_call_id in calls]
    results = [{"source_call_id": message.tool_call_id, "content": message.text} for message in answers]
    yield {
        "source": "agent",
        "message": turn.message.text,
        **_spoken(turn.message),
        **({"observation": {"results": results}} if results else {}),
        "metrics": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(turn.output_ids),
            "prompt_token_ids": prompt.tolist(),
            "completion_token_ids": turn.output_ids.tolist(),
            "logprobs": turn.logprobs.tolist(),
        },
        "llm_call_count": 1,
        "extra": _of_turn(turn),
    }
    for message in turn.observation:
        if message not in answers:
            yield _said(message)


def _of_turn(turn: Turn) -> dict[str, Any]:
    return {"agent": turn.agent, "reward": turn.reward, "finish": str(turn.finish), "fork": turn.fork}


def _trace(stored: Stored) -> dict[str, Any]:
    trajectory, told = stored.trajectory, _extra(stored)
    turns, shown = [], [message.to_openai() for message in trajectory.prompt]
    is_alone = len({turn.agent for turn in trajectory.turns}) == 1  # or they have not all seen the same
    for number, turn in enumerate(trajectory.turns):
        prompt, said = turn.prompt_ids.tolist(), turn.message.to_openai()
        turns.append(
            {
                "node_id": f"{trajectory.id}/{number}",
                "prompt_token_ids": prompt,
                "completion_token_ids": turn.output_ids.tolist(),
                "per_token_logps": turn.logprobs.tolist(),
                "loss_mask": [0] * len(prompt) + [1] * len(turn.output_ids),
                "request": {"messages": list(shown)} if is_alone else {},
                "response": {"choices": [{"message": said, "finish_reason": str(turn.finish)}]},
                "metadata": {**_of_turn(turn), "trajectory": told},
            }
        )
        shown += [said, *(message.to_openai() for message in turn.observation)]
    return {"schema_version": 1, "turns": turns}


# Reading


def _read(where: str, row: Mapping[str, Any]) -> Document:
    if str(row["schema_version"]).startswith("ATIF-v1."):
        told = dict(row.get("extra") or {})
        steps = [step for step in row["steps"] if step["source"] == "agent" and not step.get("is_copied_context")]
        metrics = [(step["metrics"], step.get("extra") or {}) for step in steps if step.get("llm_call_count") != 0]
        calls = [
            (of["prompt_token_ids"], of["completion_token_ids"], [1] * len(of["completion_token_ids"]), extra)
            for of, extra in metrics
        ]
    else:
        turns = row["turns"]
        told = dict((turns[0].get("metadata") or {}).get("trajectory") or {})
        calls = [
            (
                turn["prompt_token_ids"],
                turn["completion_token_ids"],
                turn["loss_mask"][len(turn["prompt_token_ids"]) :],
                turn.get("metadata") or {},
            )
            for turn in turns
        ]
    return Document(where, tuple(_chains(calls)), told, failed="failure" in told)


def chat_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `messages` and, where there are any, `tools` of an ATIF document, as OpenAI has them: what was said,
    to be encoded, where there are no tokens. LookupError, TypeError or AttributeError where it is none."""
    messages: list[dict[str, Any]] = []
    for step in row["steps"]:
        if step["source"] != "agent":
            messages.append({"role": step["source"], "content": step["message"]})
            continue
        calls = [
            {
                "id": call["tool_call_id"],
                "type": "function",
                "function": {"name": call["function_name"], "arguments": json.dumps(call["arguments"])},
            }
            for call in step.get("tool_calls") or ()
        ]
        said = {"role": "assistant", "content": step["message"] or None, REASONING: step.get("reasoning_content")}
        messages.append(said | ({"tool_calls": calls} if calls else {}))
        for result in (step.get("observation") or {}).get("results", ()):
            of, content = result.get("source_call_id"), result.get("content") or ""
            messages.append(
                {"role": "tool", "tool_call_id": of, "content": content} if of else user(content).to_openai()
            )
    tools = row["agent"].get("tool_definitions")
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _chains(calls: list[tuple[list[int], list[int], list[int], Mapping[str, Any]]]) -> Iterator[tuple[Ints, Mask]]:
    """Calls whose prompt goes on with the tokens of the last one of their agent, joined; of any other begins anew."""
    chains: dict[str, list[tuple[Ints, Mask]]] = {}
    for prompt, completion, mask, extra in calls:
        if len(mask) != len(completion):
            raise ValueError(f"{len(mask)} places of a mask for {len(completion)} tokens")
        of_agent = chains.setdefault(str(extra.get("agent")), [])
        before, trained = of_agent[-1] if of_agent else (as_ints([]), np.zeros(0, np.bool_))
        shown = as_ints(prompt)
        goes_on = bool(of_agent) and not extra.get("fork") and extends(shown, before)
        trained = np.concatenate(
            [trained if goes_on else np.zeros(0, np.bool_), np.zeros(len(shown) - goes_on * len(trained), np.bool_)]
        )
        joined = (
            as_ints(np.concatenate([shown, as_ints(completion)])),
            np.concatenate([trained, np.array(mask, np.bool_)]),
        )
        of_agent[-1 if goes_on else len(of_agent) :] = [joined]
    for of_agent in chains.values():
        yield from (chain for chain in of_agent if chain[1].any())
