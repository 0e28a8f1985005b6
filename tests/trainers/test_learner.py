"""The learner between two batches: what is stepped, what is skipped, and what its checkpoints hold."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quintain.config import parse_config
from quintain.failure import QuintainError
from quintain.trainers import checkpoint
from quintain.trainers.algorithms import algorithm_of
from quintain.trainers.checkpoint import Progress, latest_checkpoint
from quintain.trainers.learner import Learner

from ..launch.runs import make_model
from .made_segments import tiny as of_kind
from .test_update import groups, tiny

Made = Callable[..., Learner[Any]]
DONE = Progress(1, 1, 3, 2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}))).save_pretrained(folder)
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Iterator[Made]:
    """Makes learners of one run; `lora` in place of the whole model, anything else is of the trainer."""
    learners: list[Learner[Any]] = []

    def make(*, lora: bool = False, path: Path = model, **changes: Any) -> Learner[Any]:
        text = f"model: {{path: {path}, compute_dtype: float32}}\nenvironment: {{name: math}}\n"
        options = {"learning_rate": 0.01, "threads": 1, "save_total_limit": 1} | changes
        settings = [f"trainer.{name}={json.dumps(value)}" for name, value in options.items()]
        config = parse_config(text, settings + (['model.lora={"r": 2}'] if lora else []))
        learners.append(
            Learner(config, algorithm_of(config), checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
        )
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


def weights(learner: Learner[Any]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters() if p.requires_grad]).clone()


def state_of(learner: Learner[Any]) -> Any:
    return learner.trained["policy"].optimizer.state


class Broken:
    """While it is in force, one entry of one weight's gradient is `value`."""

    def __init__(self, learner: Learner[Any], value: float) -> None:
        parameter = [p for p in learner.model.parameters() if p.requires_grad][-1]

        def spoil(gradient: Tensor) -> Tensor:
            spoilt = gradient.clone()
            spoilt.view(-1)[0] = value
            return spoilt

        self.remove = parameter.register_hook(spoil).remove


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_iterations": 3}, {"streams": 1}], ids=str)
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted_and_kept(
    made: Made, tmp_path: Path, value: float, options: dict[str, Any]
) -> None:
    learner = made(**options)
    learner.update(groups(1), step=0)
    before, state = weights(learner), {id(k): dict(v) for k, v in state_of(learner).items()}
    broken = Broken(learner, value)
    figures = learner.update(groups(2), step=1)
    broken.remove()
    assert figures["skipped_steps"] == 1
    assert torch.equal(weights(learner), before)
    assert all(torch.equal(v[name], state[id(k)][name]) for k, v in state_of(learner).items() for name in v)
    lines = (tmp_path / "logs" / "skipped-000002.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert {row["group"] for row in rows} == {0, 1, 2}
    assert all(len(row["ids"]) == len(row["mask"]) == len(row["logprobs"]) == len(row["versions"]) for row in rows)
    after = learner.update(groups(3), step=2)
    assert after["skipped_steps"] == 0
    assert weights(learner).isfinite().all()
    assert not torch.equal(weights(learner), before)


def test_one_bad_batch_between_good_ones_never_stops_a_run_and_three_in_a_row_do(
    made: Made,
) -> None:
    learner = made()
    for step in range(6):
        broken = Broken(learner, float("nan"))
        learner.update(groups(step), step=step)
        broken.remove()
        if step % 2:
            learner.update(groups(step), step=step)
    broken = Broken(learner, float("nan"))
    for step in range(2):
        learner.update(groups(step), step=step)
    with pytest.raises(
        QuintainError, match=r"^the gradient of 3 batches in a row was not finite .*skipped-000003\.jsonl"
    ):
        learner.update(groups(2), step=2)
    learner.save(Progress(2, 2, 6, 2.0))  # the weights were never touched


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("where", ["weight", "exp_avg"])
def test_what_is_not_finite_is_never_written_and_the_healthy_checkpoint_stays(
    made: Made, where: str, lora: bool
) -> None:
    learner = made(lora=lora)
    learner.update(groups(1), step=0)
    learner.save(DONE)
    healthy = weights(learner)
    parameter = next(p for p in learner.model.parameters() if p.requires_grad)
    (parameter.data if where == "weight" else state_of(learner)[parameter]["exp_avg"]).view(-1)[0] = torch.nan
    with pytest.raises(
        QuintainError, match=rf"\({where}\) is not finite.*; the newest complete checkpoint is step-000001$"
    ):
        learner.save(Progress(2, 2, 6, 4.0))
    again = made(lora=lora)
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    assert again.restore(newest) == DONE
    assert torch.equal(weights(again), healthy)


def test_weights_that_say_nothing_finite_are_not_blamed_on_the_engine(made: Made, tmp_path: Path) -> None:
    from quintain.config import RolloutConfig
    from quintain.trainers.publishing.publish import PolicyPublisher

    learner = made(path=make_model(tmp_path / "model"))
    publisher = PolicyPublisher(learner, None, RolloutConfig(dtype="float32"), scratch=tmp_path)  # type: ignore[arg-type]
    with torch.no_grad():
        next(learner.model.parameters()).fill_(torch.nan)
    with pytest.raises(QuintainError, match="the trained weights give log-probabilities that are not finite"):
        publisher.publish(1, admit=True)
    publisher.close()


def test_minibatches_are_updates_of_their_own_against_the_policy_before_them(made: Made) -> None:
    """The first one of a batch has a ratio of 1 to the proximal policy, the later ones no longer have."""
    learner = made(num_mini_batches=3, loss_type="cispo", epsilon_high=1.0)
    figures = learner.update(groups(1), step=0)
    assert figures["microbatches"] == 3
    steps = {int(state["step"]) for state in state_of(learner).values()}
    assert steps == {3}
    assert figures["cispo_clip_ratio"] > 0
    assert made(loss_type="cispo", epsilon_high=1.0).update(groups(1), step=0)["cispo_clip_ratio"] == 0


def saved(learner: Learner) -> Path:
    """The checkpoint of `learner` after a step."""
    learner.update(groups(1), step=0)
    learner.save(DONE)
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    return newest


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_going_on_from_a_checkpoint_is_going_on(made: Made, lora: bool) -> None:
    learner = made(lora=lora)
    newest = saved(learner)
    drawn = np.random.random(), torch.rand(1)
    learner.update(groups(2), step=1)
    again = made(lora=lora)
    again.restore(newest)
    assert (np.random.random(), torch.rand(1)) == drawn
    again.update(groups(2), step=1)
    assert torch.equal(weights(again), weights(learner))


class Trap:
    """Unpickling it runs what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_reading_a_checkpoint_runs_nothing_of_it(made: Made, tmp_path: Path) -> None:
    learner = made()
    newest = saved(learner)
    torch.save({"optimizer": Trap(tmp_path / "run"), "rng": {}}, newest / "state.pt", pickle_module=pickle)
    with pytest.raises(QuintainError, match="cannot read the checkpoint"):
        learner.restore(newest)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", ["the folder", "a rank's part"])
def test_a_checkpoint_that_lacks_what_the_optimiser_knew_is_refused(made: Made, lost: str) -> None:
    learner = made()
    newest = saved(learner)
    (part,) = (newest / "optimizers").iterdir()
    if lost == "the folder":
        shutil.rmtree(part.parent)
    else:
        with safe_open(part, "pt") as file:
            names = sorted(file.keys())
            save_file({name: file.get_tensor(name) for name in names[1:]}, part)
    with pytest.raises(QuintainError, match="cannot read the checkpoint"):
        learner.restore(newest)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_everything_of_a_checkpoint_is_on_the_disk_before_it_gets_its_name(
    made: Made, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    learner = made(lora=lora)
    learner.update(groups(1), step=0)
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(path)
        if path == str(root):
            assert (root / "step-000001").is_dir()

    def rename(draft: Path, final: Path) -> Path:
        inside = [draft, *draft.rglob("*")]
        assert {str(path) for path in inside} <= set(synced)
        assert max(synced.index(str(path)) for path in inside) == synced.index(str(draft))
        os.rename(draft, final)
        return final

    root = learner.checkpoints
    monkeypatch.setattr(checkpoint.os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    learner.save(DONE)
    assert synced[-1] == str(root)


def test_saving_a_step_again_replaces_it_and_leaves_no_drafts(made: Made) -> None:
    learner = made()
    for _ in range(2):
        learner.update(groups(1), step=0)
        learner.save(DONE)
    assert [path.name for path in learner.checkpoints.iterdir()] == ["step-000001"]
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    before = weights(learner)
    learner.update(groups(2), step=1)
    learner.restore(newest)
    assert torch.equal(weights(learner), before)


@pytest.mark.parametrize(("longest", "refused"), [("null", True), (33, True), (32, False)])
def test_episodes_whose_rows_would_depend_on_the_rows_beside_them_are_refused(
    model: Path, tmp_path: Path, longest: Any, refused: bool
) -> None:
    phi = shutil.copytree(model, tmp_path / "phi")
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    of_kind("phi3", rope_parameters=rope, original_max_position_embeddings=32).save_pretrained(phi)
    text = f"model: {{path: {phi}, compute_dtype: float32}}\nenvironment: {{name: math}}\n"
    settings = ["rollout.max_completion_length=8", f"rollout.max_length={longest}", "trainer.threads=1"]
    config = parse_config(text, settings)
    if refused:
        with pytest.raises(QuintainError, match=r"^rollout\.max_length: beyond 32 tokens .*set it to at most 32"):
            Learner(config, algorithm_of(config), checkpoints=tmp_path, logs=tmp_path)
    else:
        Learner(config, algorithm_of(config), checkpoints=tmp_path, logs=tmp_path).close()


def test_what_the_trainer_cannot_run_is_one_line(model: Path, tmp_path: Path) -> None:
    lora = 'model.lora={"r": 2, "target_modules": ["q_proj", "lm_head"]}'
    untied = make_model(tmp_path / "untied", favours=7)
    config = parse_config(f"model: {{path: {untied}, compute_dtype: float32}}\nenvironment: {{name: math}}\n", [lora])
    with pytest.raises(QuintainError, match=r"^model: the LM head of LlamaForCausalLM is a Linear.*leave it out"):
        Learner(config, algorithm_of(config), checkpoints=tmp_path, logs=tmp_path)


def test_experts_are_balanced_by_the_models_own_loss_beside_the_algorithms(
    made: Made, model: Path, tmp_path: Path
) -> None:
    """Mixtral's own auxiliary loss on the same rows, and its gradient; and one warning about the routing."""
    folder = tmp_path / "experts"
    of_kind("mixtral", num_local_experts=4, num_experts_per_tok=2, vocab_size=97).save_pretrained(folder)
    for file in model.glob("tokenizer*"):
        shutil.copy(file, folder)
    for layout in ("padded", "packed"):  # in a tree a prompt is routed once
        learner = made(path=folder, layout=layout, router_aux_loss_coef=0.3, streams=1)
        (note,) = [each for each in learner.notes if "routing is not replayed" in each]
        assert "sampling_logp_difference" in note
        rows = learner.algorithm.credit(learner.algorithm.rows(groups(1), version=0))
        work = learner._works(rows, ["policy"])["policy"]
        ids = torch.zeros(len(work.rows), 64, dtype=torch.int64)
        real = torch.zeros_like(ids)
        for at, row in enumerate(work.rows):  # a row's last token predicts nothing, and is not run
            tokens = torch.tensor(row.segment.ids[:-1])
            ids[at, : len(tokens)], real[at, : len(tokens)] = tokens, 1
        loss = learner.model(input_ids=ids, attention_mask=real, output_router_logits=True, use_cache=False).aux_loss
        parameters = list(learner.model.parameters())
        own = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found = []
        for weight in (0.0, 0.3):
            _, metrics = learner._gradient(learner.trained["policy"], replace(work, balance=weight), check=False)
            assert metrics["router_aux_loss"].value() == pytest.approx(float(loss.detach()), rel=1e-5)
            found.append([p.grad.clone() for p in parameters if p.grad is not None])
        for without, with_it, expected in zip(*found, own, strict=True):
            torch.testing.assert_close(with_it - without, 0.3 * expected, rtol=1e-4, atol=1e-6)


def test_a_model_without_experts_has_none_to_balance(made: Made) -> None:
    with pytest.raises(QuintainError, match=r"router_aux_loss_coef: LlamaForCausalLM has no experts"):
        made(router_aux_loss_coef=0.1)
