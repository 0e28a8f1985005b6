"""Models with a number for each token in place of an LM head: reward models, judged at the tokens that ask for it.

What is said of a policy token is what the model says before it, as of log-probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quintain.trainers.batches.batch import PARITY_TOKENS, MicroBatch
from quintain.trainers.model import attention
from quintain.trainers.model.forward import TokenLogprobs, in_blocks, plain_model, predicting_states
from quintain.trainers.model.precision import keep_exact


class ValueForward(nn.Module):
    """The forward pass of a transformers classifier as one module. Of two labels the value is how far apart they are.

    Raises ValueError for a model whose numbers are not a linear head's on a decoder's hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        base = plain_model(model)
        value_head(base)
        if base.device.type == "cpu":
            keep_exact(base)
            if base.config._attn_implementation == "sdpa" and base._can_set_attn_implementation():
                attention.install(base)

    @property
    def parity_tokens(self) -> int | None:
        """What `micro_batches` should weigh the length of rows with."""
        return None if in_blocks(plain_model(self.model)) else PARITY_TOKENS

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
