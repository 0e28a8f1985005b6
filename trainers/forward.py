from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    logp: Tensor
    entropy: Tensor | None


def supports_tree(model):
    return None


class PolicyForward(nn.Module):
    def __init__(self, model, *, temperature=1.0):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, piece, temperature=None):
        temperature = self.temperature if temperature is None else temperature
        m = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        h = m.model(
            input_ids=piece.input_ids,
            position_ids=piece.position_ids,
            attention_mask=piece.attention_mask,
            use_cache=False,
        ).last_hidden_state
        h = h.reshape(-1, h.shape[-1])[piece.gather]
        logits = m.lm_head(h).float() / temperature
        lp = torch.log_softmax(logits, -1)
        ent = -(lp.detach().exp() * lp.detach()).sum(-1)
        return TokenLogprobs(lp.gather(-1, piece.targets[:, None])[:, 0], ent)
