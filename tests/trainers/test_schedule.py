"""The learning rate is transformers' own schedule."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from transformers import get_scheduler

from quintain.config import GRPOConfig, parse_config
from quintain.failure import QuintainError
from quintain.trainers.schedule import learning_rate, optimizer_of

from ..tiny_llama import tiny_llama

KINDS = {
    "constant": {}, "linear": {}, "cosine": {}, "cosine_with_restarts": {"num_cycles": 2}, "polynomial": {"power": 2.0},
    "cosine_with_min_lr": {"min_lr_rate": 0.1}, "inverse_sqrt": {}, "warmup_stable_decay": {"num_decay_steps": 5},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_rate_of_every_step_is_that_of_transformers(kind: str, warmup: int) -> None:
    config = parse_config(
        "model: {path: x}\nenvironment: {name: math}\n"
        f"trainer: {{max_steps: 20, learning_rate: 0.001, lr_scheduler_type: {kind}, warmup_steps: {warmup},"
        f" lr_scheduler_kwargs: {json.dumps(KINDS[kind])}}}"
    ).trainer
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    name = "constant_with_warmup" if kind == "constant" else kind
    peer = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=20, scheduler_specific_kwargs=KINDS[kind]
    )
    for step in range(20):
        assert learning_rate(config, step) == pytest.approx(peer.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        peer.step()


def test_an_option_that_a_schedule_has_not_is_one_line() -> None:
    config = GRPOConfig(lr_scheduler_type="cosine", lr_scheduler_kwargs={"cycles": 2})
    with pytest.raises(QuintainError, match=r"^trainer\.lr_scheduler_kwargs: .*cycles"):
        learning_rate(config, 0)


@pytest.mark.parametrize(("name", "made"), [("adamw", "AdamW"), ("sgd", "SGD"), ("adafactor", "Adafactor")])
def test_the_optimiser_is_the_one_that_is_named_and_steps(name: str, made: str) -> None:
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    optimizer = optimizer_of(GRPOConfig(optim=name, learning_rate=0.1), layer)  # type: ignore[arg-type]
    assert type(optimizer).__name__ == made
    layer.weight.sum().backward()
    optimizer.step()
    assert (layer.weight < before).all()


@pytest.mark.parametrize("tied", [False, True])
def test_muon_steps_the_matrices_and_adamw_words_head_and_vectors_also_after_it_is_loaded(tied: bool) -> None:
    """Against torch's Muon and AdamW on their own, over several steps, with the state given away and taken back."""
    model = tiny_llama(0, words=31, length=16, tie_word_embeddings=tied)
    peer = copy.deepcopy(model)
    config = GRPOConfig(optim="muon", learning_rate=0.02, weight_decay=0.1)
    optimizer = optimizer_of(config, model)
    named = dict(peer.named_parameters())
    ours = [name for name, p in named.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    assert 0 < len(ours) < len(named)
    muon = torch.optim.Muon([named[n] for n in ours], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for n, p in named.items() if n not in ours], lr=0.02, weight_decay=0.1, fused=True)
    ids = torch.arange(12).view(2, 6)
    for step in range(3):
        for each in (model, peer):
            each.zero_grad()
            each(input_ids=ids, labels=ids).loss.backward()
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.02 / (step + 1)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each in (optimizer, muon, adamw):
            each.step()
        for (name, mine), theirs in zip(model.named_parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_muon_is_refused_where_it_does_not_apply() -> None:
    model = tiny_llama(0, words=31, length=16)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    with pytest.raises(QuintainError, match="muon is for matrices, and none of this model is trained"):
        optimizer_of(GRPOConfig(optim="muon"), model)


def test_muon_is_refused_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(QuintainError, match="muon needs a newer torch"):
        optimizer_of(GRPOConfig(optim="muon"), torch.nn.Linear(4, 4))


def test_an_optimiser_of_a_package_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(QuintainError, match="adamw_8bit needs bitsandbytes"):
        optimizer_of(GRPOConfig(optim="adamw_8bit"), torch.nn.Linear(1, 1))
