"""The only module of this room that imports torch: a sequence classifier and its tokenizer, batch by batch.

Loaded and used in the reward model's own thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quintain.failure import QuintainError


class Classifier:
    """A model with one number for each text: its only label's logit, or that of label `label`."""

    def __init__(self, path: str, *, label: int | None, device: str, dtype: str) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=getattr(torch, dtype))
        labels = int(model.config.num_labels)
        if label is None and labels != 1:
            raise QuintainError(f"the reward model {path!r} has {labels} labels: say with the option label which one")
        if label is not None and label >= labels:
            raise QuintainError(f"the reward model {path!r} has {labels} labels and none numbered {label}")
        self._label = label or 0
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model.config.pad_token_id = self._tokenizer.pad_token_id  # it finds the last token of a row by it
        self._model = model.to(device).eval()
        self._device = device

    def tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of a conversation that ends with the answer: by its chat template where it has one."""
        if self._tokenizer.chat_template is not None:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False)
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        texts = [message["content"] for message in messages]
        if len(texts) == 1:
            return list(self._tokenizer(texts[0])["input_ids"])
        return list(self._tokenizer("\n".join(texts[:-1]), texts[-1])["input_ids"])

    @torch.inference_mode()
    def rewards(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The logit of each of `rows` of token ids."""
        batch = self._tokenizer.pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt")
        logits = self._model(
            input_ids=batch["input_ids"].to(self._device), attention_mask=batch["attention_mask"].to(self._device)
        ).logits
        return [float(value) for value in logits[:, self._label].float().cpu()]
