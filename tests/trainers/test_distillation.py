"""Distillation: divergences against TRL's, policy gradients against the KL's own, and teachers that are refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.experimental.gkd import GKDTrainer

from quintain.config import DistillationConfig, parse_config
from quintain.failure import QuintainError
from quintain.trainers.algorithms.distillation import Distillation
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.model.lm_head import LMHead, chunked_divergence, generalised_jsd
from quintain.trainers.rows import Totals
from quintain.trainers.sources import WithExamples

from .algorithm_cases import Case, sampled, texts
from .made_segments import tiny as of_kind
from .test_algorithms import Made
from .test_algorithms import made as made
from .test_ppo import credited, played, turn
from .test_update import groups, tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that reads any text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "policy"
    words = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    tiny().save_pretrained(folder)  # type: ignore[operator]
    return folder


BETAS = [0.0, 0.3, 0.5, 1.0]


@pytest.mark.parametrize("beta", BETAS)
def test_divergence_and_gradient_are_those_of_trls_gkd_however_many_rows_exist_at_a_time(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, theirs, their_weight = drawn(7, 4), drawn(11, 4), drawn(7, 6), drawn(11, 6)
    gradients = []
    for rows in (None, 3, 100):
        mine, own = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if rows is None:
            loss = GKDTrainer.generalized_jsd_loss(
                (mine @ own.T)[None], (theirs @ their_weight.T)[None], beta=beta, temperature=0.7, reduction="sum"
            )
        else:
            head, other = LMHead(own, None, 1.0, None), LMHead(their_weight, None, 1.0, None)
            loss = chunked_divergence(mine, head, theirs, other, beta=beta, temperature=0.7, rows=rows).sum()
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (mine, own))))
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0])


def test_the_gradient_at_sampled_tokens_is_that_of_the_reverse_kl_in_the_mean() -> None:
    """Σ_x π(x)·(advantage of x)·∇log π(x), over every token that may be sampled, is −∇KL(π ‖ teacher)."""
    distillation = Distillation(DistillationConfig(teacher="x"), longest=1)
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    logp = logits.log_softmax(-1)
    batch = played(*[[turn(1)] for _ in range(5)])
    columns = [{"old": [float(logp[x].detach())], "teacher": [float(teacher[x])]} for x in range(5)]
    rows = credited(distillation, batch, *columns)  # type: ignore[arg-type]
    advantage = torch.tensor([float(row.columns["advantage"][0]) for row in rows.rows], dtype=torch.float64)
    inputs = LossInputs(
        logp=logp, row=torch.arange(5), rows=5, advantage=advantage * logp.detach().exp(), mask=torch.ones(5) > 0
    )
    loss, _ = distillation.loss("policy", inputs, Totals(rows=5, tokens=1, max_completion_length=1))
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(generalised_jsd(logp[None], teacher[None], 1.0).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert rows.metrics["reverse_kl"] == pytest.approx(float((logp - teacher).detach().mean()))


def test_with_gamma_a_token_answers_for_those_that_follow() -> None:
    distillation = Distillation(DistillationConfig(teacher="x", gamma=0.5), longest=4)
    columns = {"old": [0.0, 0.0, 0.0], "teacher": [-1.0, -2.0, -4.0]}
    (row,) = credited(distillation, played([turn(2), turn(1)]), columns).rows  # type: ignore[arg-type]
    np.testing.assert_allclose(row.columns["advantage"], [-1 - 1 - 1, -2 - 2, -4])


def test_a_teacher_that_gives_no_finite_number_is_one_line() -> None:
    distillation = Distillation(DistillationConfig(teacher="x"), longest=4)
    with pytest.raises(QuintainError, match="no finite log-probability of 1 of 2 tokens"):
        credited(distillation, played([turn(2)]), {"old": 0.0, "teacher": [0.0, np.nan]})  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [None, 0.5])
def test_a_policy_comes_nearer_to_its_teacher(made: Made, beta: float | None) -> None:
    learner = made(Case("distillation", {"beta": beta}))
    found = [learner.update(groups(1), step=0) for _ in range(8)]
    if beta is None:  # these tokens are not the policy's own: it unlearns those that the teacher finds less likely
        assert found[-1]["reverse_kl"] < found[0]["reverse_kl"]
    else:
        assert found[-1]["divergence"] < 0.7 * found[0]["divergence"]


def test_a_teacher_that_reads_other_tokens_is_refused(made: Made, tmp_path: Path) -> None:
    of_kind("llama").save_pretrained(tmp_path / "teacher")
    with pytest.raises(QuintainError, match=r"trainer\.teacher: no tokenizer in"):
        made(Case("distillation", {"teacher": str(tmp_path / "teacher")}))


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], dict[str, Any] | None]) -> Iterator[str]:
    """A server on this machine that answers what `answer` makes of a path and a body; None is a 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length") or 0))
            found = answer(self.path, json.loads(sent or b"{}"))
            data = json.dumps(found if found is not None else {"error": "no such path"}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, form: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def vllm(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """What a vLLM server says whose model gives every token the log-probability of its id / -100."""
    if path == "/v1/models":
        return {"data": [{"id": "big"}]}
    if path == "/tokenize":
        return None
    assert body["model"] == "big"
    told = [None, *({str(token): {"logprob": -token / 100}} for token in body["prompt"][1:])]
    return {"choices": [{"prompt_logprobs": told}]}


def test_a_teacher_behind_a_server_scores_the_tokens_that_were_sampled(made: Made) -> None:
    with serving(vllm) as url:
        learner = made(Case("distillation", {"teacher_url": url}))
        rows = learner.passes.fill(learner.algorithm.rows(groups(1), version=0)).rows
    for row in rows:
        np.testing.assert_allclose(row.columns["teacher"], row.segment.ids[row.segment.mask] / -100, rtol=1e-6)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"/v1/completions": {"choices": [{"text": "x"}]}}, "gives no log-probabilities of the policy's tokens"),
        ({"/v1/completions": None}, "gives no log-probabilities of the policy's tokens"),
        ({"/v1/models": {"data": []}}, "gives no log-probabilities of the policy's tokens"),
        ({"/tokenize": {"tokens": [5, 6, 7]}}, "big reads other tokens than the policy"),
    ],
)
def test_a_server_without_log_probabilities_or_with_another_vocabulary_is_one_line(
    made: Made, broken: dict[str, Any], said: str
) -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        return broken[path] if path in broken else vllm(path, body)

    with serving(answer) as url, pytest.raises(QuintainError, match=said) as caught:
        made(Case("distillation", {"teacher_url": url}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give exactly one of 'teacher'"),
        ({"teacher": "a", "teacher_url": "http://b"}, "give exactly one of 'teacher'"),
        ({"teacher_url": "http://b", "beta": 0.5}, "a server gives no whole distributions"),
        ({"teacher": "a", "lmbda": 0.5}, "lmbda: nobody sampled the tokens of a dataset, .* set beta"),
        ({"teacher": "a", "lmbda": 0.5, "beta": 0.5}, "with trainer.lmbda 0.5 the others come from one: give it"),
        ({"teacher": "a", "lmbda": 0.999, "beta": 0.5}, "0.999 takes no example of the dataset"),
        ({"teacher": "a", "lmbda": 0.0, "beta": 0.5}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_meant_are_told(options: dict[str, Any], said: str) -> None:
    text = "model: {path: x}\nenvironment: {name: math}\ntrainer: {algorithm: distillation}\n"
    with pytest.raises(QuintainError, match=said):
        parse_config(text, [f"trainer.{name}={json.dumps(value)}" for name, value in options.items()])


def test_a_dataset_of_which_nothing_is_taken_is_refused() -> None:
    text = (
        "model: {path: x}\nenvironment: {name: math}\ntrainer: {algorithm: distillation, teacher: a}\ndataset: a.jsonl"
    )
    with pytest.raises(QuintainError, match="dataset: distillation samples what it trains on: drop it"):
        parse_config(text)
    beside = ["trainer.lmbda=0.5", "trainer.beta=0.5", "evaluation={dataset: b.jsonl}"]
    with pytest.raises(
        QuintainError, match=r"evaluation\.dataset: distillation is evaluated on tasks of its environment"
    ):
        parse_config(text, beside)


def test_lmbda_is_the_share_of_sequences_that_are_sampled_and_the_others_count_as_they_do() -> None:
    config = DistillationConfig(teacher="x", beta=0.5, lmbda=0.25, prompts_per_step=3, num_generations=2)
    assert config.examples_per_step == 18
    groups, examples = sampled(1), texts(1)
    found = WithExamples(Always(groups), Always(examples)).batch(0)
    rows = Distillation(config, longest=8).rows(found, version=0)
    alone = Distillation(config, longest=8).rows(groups, version=0)
    assert len(rows.rows) == len(alone.rows) + len(examples) == len({row.unit for row in rows.rows})
    assert not {row.prefix for row in rows.rows[-len(examples) :]} & {row.prefix for row in alone.rows}
    assert rows.totals.tokens == alone.totals.tokens + sum(len(e.ids[0]) - e.prompt for e in examples)
    assert rows.metrics == alone.metrics


class Always:
    def __init__(self, data: Any) -> None:
        self.batch = lambda step: data
