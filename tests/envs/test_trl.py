"""Environments as TRL wants them: found, described and called as its GRPOTrainer does it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from quintain.envs import Task, ToolEnv, tool, user
from quintain.envs.trl import environment_factory
from quintain.failure import QuintainError

from ..rollout.chat_tokenizers import byte_level, templates


def tools_of(made: Any) -> dict[str, Any]:
    """As TRL lists them."""
    members = inspect.getmembers(type(made), predicate=inspect.isfunction)
    names = [n for n, _ in members if n not in ("reset", "get_reward") and not n.startswith("_")]
    return {name: getattr(made, name) for name in names}


def test_the_tools_of_an_environment_are_described_and_called_and_it_owns_its_reward():
    factory = environment_factory("calculator", {"low": 2, "high": 9, "operations": "*", "heldout": 3})
    made, other = factory(), factory()
    tools = tools_of(made)
    schemas = {name: get_json_schema(method)["function"] for name, method in tools.items()}
    assert sorted(schemas) == ["answer", "calculate"]
    assert schemas["calculate"]["parameters"]["required"] == ["expression"]
    assert schemas["calculate"]["parameters"]["properties"]["expression"]["type"] == "string"
    assert "such as" in schemas["calculate"]["parameters"]["properties"]["expression"]["description"]
    asked = made.reset(index=0, prompt="ignored").rpartition("What is ")[2].rstrip("?")
    assert other.reset(index=1).rpartition("What is ")[2].rstrip("?") != asked
    value = tools["calculate"](expression=asked)
    assert "raised" in tools["calculate"](expression="x") or "error" in tools["calculate"](expression="x")
    tools["answer"](text=value)
    assert tools["answer"](text="again") == "The episode has ended."
    assert (made.get_reward(), made.get_reward()) == (1.0, 1.0)
    assert other.get_reward() == 0.0  # never answered
    made.reset(index=0)
    assert made.get_reward() == 0.0


class Many(ToolEnv):
    """Tools with arguments of every kind."""

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task("one", (user("Go."),), "x")]

    @tool
    def mix(self, n: int, x: float = 0.5, on: bool = True, words: list[str] | None = None) -> str:
        """Mix.

        Args:
            n: How many.
        """
        if n < 0:
            raise ValueError("too few")
        return f"{n} {x} {on} {words}"

    def score(self, answer: str, reference: str) -> float:
        if answer == "break":
            raise RuntimeError("broken")
        return float(answer == reference)


def test_arguments_have_their_types_and_defaults_and_what_breaks_has_no_reward():
    made = environment_factory(Many)()
    tools = tools_of(made)
    schema = get_json_schema(tools["mix"])["function"]["parameters"]
    assert schema["required"] == ["n"]
    assert {name: part["type"] for name, part in schema["properties"].items()} == {
        "n": "integer", "x": "number", "on": "boolean", "words": "string"
    }  # fmt: skip
    assert made.reset() == "Go."
    assert tools["mix"](n=1) == "1 0.5 True None"
    assert "too few" in tools["mix"](n=-1)
    assert "broken" in tools["answer"](text="break")
    assert made.get_reward() is None
    made.reset()
    tools["answer"](text="x")
    assert made.get_reward() == 1.0


def test_a_tool_that_trl_cannot_call_is_one_line():
    class Answering(Many):
        @tool
        def answer(self, text: str) -> str:
            """Answer."""
            return text

    with pytest.raises(QuintainError, match="has a tool called answer"):
        environment_factory(Answering)


class Scripted(GRPOTrainer):
    """Says what is right in every other completion, by a call, instead of what its model samples."""

    def _generate_single_turn(self, prompt_ids, *_, **__):
        said = []
        for number, ids in enumerate(prompt_ids):
            text = self.processing_class.decode(ids)
            asked = text.rpartition("What is ")[2].partition("?")[0]
            given = {"name": "answer", "arguments": {"text": str(eval(asked)) if number % 2 == 0 else "no"}}
            answered = "<tool_response>" in text.rpartition("What is ")[2]
            said.append("Bye." if answered else f"<tool_call>\n{json.dumps(given)}\n</tool_call>")
        return [self.processing_class.encode(f"{words}<|im_end|>") for words in said], None


def test_trls_trainer_takes_a_step_on_what_an_environment_of_ours_paid(tmp_path):
    tokenizer = byte_level(templates()["qwen3"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    config = GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=400,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Calculate."}], "index": 3}])
    trainer = Scripted(
        AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads)),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        environment_factory=environment_factory("calculator", {"operations": "*"}),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert trainer.state.global_step == 1
    assert (logged["reward"], logged["tools/call_frequency"], logged["tools/failure_frequency"]) == (0.5, 1.0, 0.0)
    assert logged["grad_norm"] > 0
