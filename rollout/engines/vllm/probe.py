"""What a vLLM server must be able to do, asked of it before anything is sampled. Every lack is one line that says what
to do about it.

The questions are put to the server itself, not to its configuration: a flag may be set and do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from quintain.calling.connections import http_client
from quintain.failure import QuintainError, one_line
from quintain.rollout.engines.vllm.dialect import CompletionApi, read_score

OLDEST = (0, 32)
"""The first version whose weight transfer and pauses this speaks. Newer ones are taken as they come."""

ASK_S = 120.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the run needs of each server. `words` is the size of the model's vocabulary."""

    words: int
    max_length: int | None
    keep: bool
    folder: bool  # weights come through the plugin
    adapters: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a server is: the model's name there, its longest request in tokens, and how to talk to it."""

    model: str
    max_length: int
    dialect: CompletionApi


def probe(url: str, wanted: Wanted, *, api_key: str | None, report: Callable[[str], None]) -> Found:
    """Ask the server at `url` for everything it will be asked for. QuintainError with the first thing that is wrong."""
    with http_client(url, api_key, timeout=ASK_S) as http:
        try:
            return _Probe(http, url, wanted, report).run()
        except httpx.HTTPError as error:
            raise QuintainError(f"vLLM at {url} does not answer ({type(error).__name__}): is it running?") from None


class _Probe:
    def __init__(self, http: httpx.Client, url: str, wanted: Wanted, report: Callable[[str], None]) -> None:
        self.http, self.url, self.wanted, self.report = http, url, wanted, report

    def run(self) -> Found:
        self._version()
        model, length = self._model()
        dialect = self._dialect(model)
        self._vocabulary(model)
        self._logprobs(model)
        self._commands()
        if self.wanted.folder:
            self._plugin()
        if self.wanted.adapters:
            self._adapters()
        return Found(model, length, dialect)

    def _version(self) -> None:
        answer = self.http.get("/version")
        if answer.status_code == 401:
            raise self._wrong("wants a key: name a variable that holds its --api-key in rollout.vllm.api_key_env")
        told = str(answer.json().get("version", "")) if answer.status_code == 200 else ""
        numbers = re.match(r"(\d+)\.(\d+)", told)
        if numbers is None:
            raise self._wrong(f"is no vLLM server: /version answered {answer.status_code} {told}".rstrip())
        if (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise self._wrong(f"is version {told}, and quintain needs {OLDEST[0]}.{OLDEST[1]} or newer: upgrade it")

    def _model(self) -> tuple[str, int]:
        bases = [entry for entry in self.http.get("/v1/models").json()["data"] if not entry.get("parent")]
        model, length = str(bases[0]["id"]), int(bases[0]["max_model_len"])
        if self.wanted.max_length is not None and length < self.wanted.max_length:
            raise self._wrong(
                f"holds {length} tokens and rollout.max_length is {self.wanted.max_length}: start it with"
                f" --max-model-len {self.wanted.max_length}, or lower rollout.max_length"
            )
        return model, length

    def _dialect(self, model: str) -> CompletionApi:
        """The better endpoint, if the server has it."""
        body = {"model": model, "token_ids": [0, 0], "sampling_params": {"max_tokens": 1, "detokenize": False}}
        answer = self.http.post(CompletionApi.GENERATE.value, json=body)
        if answer.status_code == 200:
            return CompletionApi.GENERATE
        if answer.status_code not in (403, 404):
            raise self._wrong(f"cannot sample: {self._said(answer)}")
        if self.wanted.keep:
            raise self._wrong("does not say which weights sampled a token, which kv: keep needs: --enable-scale-out")
        self.report(
            f"vLLM at {self.url} was started without --enable-scale-out: using {CompletionApi.COMPLETIONS.value}"
        )
        return CompletionApi.COMPLETIONS

    def _vocabulary(self, model: str) -> None:
        last = self.wanted.words - 1
        answer = self._ask(model, [last, last], prompt_logprobs=0)
        if answer.status_code != 200:
            raise self._wrong(f"serves another model ({model}): it refuses token id {last}: {self._said(answer)}")
        read_score(CompletionApi.COMPLETIONS, answer.json(), [last, last])

    def _logprobs(self, model: str) -> None:
        """With top_k 1 the only token left has probability one, where the distribution sampled from is reported."""
        answer = self._ask(model, [0, 0], top_k=1, logprobs=0)
        told = answer.json()["choices"][0]["logprobs"]["token_logprobs"][0]
        if abs(told) > 1e-6:
            raise self._wrong(
                "reports log-probabilities of another distribution than it samples from: start it with"
                " --logprobs-mode processed_logprobs"
            )

    def _commands(self) -> None:
        for path in ("/is_paused", "/weight_info"):
            if self.http.get(path).status_code != 200:
                raise self._wrong(f"has no {path}: start it with VLLM_SERVER_DEV_MODE=1 in its environment")

    def _plugin(self) -> None:
        """Have the plugin check nothing: only it knows how."""
        self.http.post("/start_weight_update")
        answer = self.http.post("/update_weights", json={"update_info": {"path": "", "check": True}})
        said = self._said(answer)
        if answer.status_code == 200:
            self.http.post("/finish_weight_update", json={})
        elif "not configured" in said:
            raise self._wrong('takes no weights: start it with --weight-transfer-config \'{"backend": "quintain"}\'')
        else:
            raise self._wrong(f"takes weights in another way (rollout.vllm.transfer): {said}")

    def _adapters(self) -> None:
        answer = self.http.post("/v1/unload_lora_adapter", json={"lora_name": "quintain-none"})
        known = self._said(answer)
        if "cannot be found" in known or ("not found" in known.lower() and "adapter" in known.lower()):
            return
        raise self._wrong(
            "takes no adapters: start it with --enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        )

    def _ask(self, model: str, ids: list[int], **settings: Any) -> httpx.Response:
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, **settings}
        return self.http.post(CompletionApi.COMPLETIONS.value, json=body)

    def _said(self, answer: httpx.Response) -> str:
        return one_line(answer.text, 200) or f"status {answer.status_code}"

    def _wrong(self, what: str) -> QuintainError:
        return QuintainError(f"vLLM at {self.url} {what}")
