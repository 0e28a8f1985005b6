"""Models with a number for each token in place of an LM head: reward models, judged at the tokens that ask for it, and
critics.

What is said of a policy token is what the model says before it, as of log-probabilities.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintain.config import ExperimentConfig, PPOConfig
from quintain.failure import QuintainError
from quintain.trainers.batches.batch import MicroBatch
from quintain.trainers.model.forward import ModelForward, TokenLogprobs, plain_model, predicting_states
from quintain.trainers.model.policy import load_policy
from quintain.trajectory import Segment


class ValueForward(ModelForward):
    """What a transformers classifier says of tokens. Of two labels the value is how far apart they are.

    Raises ValueError for a model whose numbers are not a linear head's on a decoder's hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        value_head(plain_model(model))
        super().__init__(model)

    def forward(self, batch: MicroBatch) -> TokenLogprobs:
        """value [T] of the policy tokens of `batch`, float32 at least."""
        base = plain_model(self.model)
        batch = batch.to(base.device)
        said: Tensor = value_head(base)(predicting_states(base, batch))
        said = said.to(torch.promote_types(said.dtype, torch.float32))
        values = said[:, 0] if said.shape[1] == 1 else said[:, 1] - said[:, 0]
        values = values[batch.predictor]
        return TokenLogprobs(torch.zeros_like(values), None, value=values)


def value_head(base: Any) -> nn.Linear:
    """The linear head of a classifier. ValueError where it has none of that kind."""
    head = getattr(base, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features > 2:
        raise ValueError(f"{type(base).__name__} has no linear head of one or two labels, called 'score'")
    return head


def load_critic(config: ExperimentConfig, tokenizer: Any) -> nn.Module:
    """The critic that `trainer.critic` names, or the policy's own weights with a head that says 0.

    It is trained in full, next to an adapter too. QuintainError where it reads other tokens than `tokenizer`'s, or is
    no model that a number can be had from.
    """
    assert isinstance(config.trainer, PPOConfig)
    path = config.trainer.critic
    if path is not None:
        check_tokenizer("trainer.critic", path, config, tokenizer)
    source = config.model.model_copy(update={"path": path or config.model.path, "lora": None})
    try:
        critic, _ = load_policy(source, seed=config.seed, head="score")
        head = value_head(critic)
    except (ValueError, QuintainError) as error:
        raise QuintainError(f"trainer.critic: {str(error).removeprefix('model.path: ')}") from None
    critic.config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    if path is None:
        nn.init.zeros_(head.weight)
    return critic


def check_tokenizer(option: str, path: str, config: ExperimentConfig, tokenizer: Any) -> None:
    """QuintainError where the model that `option` names reads other tokens than the policy, by its `tokenizer`."""
    from transformers import AutoTokenizer

    try:
        vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
    except (OSError, ValueError) as error:
        raise QuintainError(f"{option}: no tokenizer in '{path}': {str(error).splitlines()[0]}") from None
    if vocabulary != tokenizer.get_vocab():
        raise QuintainError(
            f"{option}: '{path}' reads other tokens ({len(vocabulary)}) than {config.model.path}"
            f" ({len(tokenizer.get_vocab())}): take one with the policy's tokenizer"
        )


def followed(segment: Segment) -> Segment:
    """`segment` with one policy token more, whatever it is: what a model says before that is what it says after the
    last."""
    arrays = {f.name: getattr(segment, f.name) for f in fields(segment)}  # the last token is a policy token
    return replace(segment, **{name: np.append(values, values[-1:]) for name, values in arrays.items()})
