"""The `Chat` of a model's folder, as an experiment's options say."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from quintain.failure import QuintainError

if TYPE_CHECKING:
    from quintain.config import ExperimentConfig
    from quintain.rollout.chat.base import Chat


def load_chat(config: ExperimentConfig) -> Chat:
    """The chat layer of `model.path`, as `rollout` has it. QuintainError, one line, where the model cannot chat."""
    from quintain.rollout.chat.template import TemplateChat

    path, rollout = config.model.path, config.rollout
    return TemplateChat(
        load_tokenizer(path),
        renderer=rollout.renderer,
        calls=rollout.tool_calls,
        thinking=rollout.thinking,
        options=rollout.chat_template_kwargs,
        date=rollout.date or datetime.date.today(),
        stop=rollout.stop,
        stop_ids=rollout.stop_ids,
        eos=_generation_eos(path),
    )


def with_date(config: ExperimentConfig) -> ExperimentConfig:
    """`config` with today where `rollout.date` is open and the model's template writes the date: a run has one."""
    from quintain.rollout.chat.template import date_of

    rollout = config.rollout
    date = date_of(load_tokenizer(config.model.path), rollout.date or datetime.date.today())
    return config.model_copy(update={"rollout": rollout.model_copy(update={"date": date})})


def load_tokenizer(model_path: str) -> Any:
    """The tokenizer in `model_path`. QuintainError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise QuintainError(f"model.path: no tokenizer in '{model_path}': {detail}") from None


def _generation_eos(model_path: str) -> list[int]:
    """The ends of a turn that the model's generation config names; none where it has no such file."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model_path).eos_token_id
    except (OSError, ValueError):
        return []
    return [eos] if isinstance(eos, int) else list(eos or [])


def quiet_transformers() -> None:
    """Turn off the progress bars and the advice of transformers, in this process: a run draws its own picture."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
