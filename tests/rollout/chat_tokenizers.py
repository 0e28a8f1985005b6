"""Small tokenizers with the real families' chat templates and special tokens, as TRL ships the templates."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

MARK = re.compile(
    r"<\|[^|<>\n\"']{1,40}\|>|</?s>|</?(?:start|end)_of_turn>|<｜[^｜]{1,40}｜>|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|</?think>|</?tool_call>|</?tool_response>|<end_of_utterance>|<\|?turn\|?>|<\|?channel\|?>|<\|?tool_\w+\|?>"
    r"|</?arg_(?:key|value)>|\[gMASK\]|<sop>|<(?:bos|eos)>|<\|?(?:tool|image|audio|video)\|?>|<\|\"\|>"
)
PLAIN = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")  # added, and not special
ALPHABET = [chr(i) for i in range(32, 127)] + ["\n", "é", "Ω", "数"]


def templates() -> dict[str, str]:
    """The chat templates that TRL has, by family; its own patched ones for training left out."""
    folder = files("trl") / "chat_templates"
    found = {path.name.removesuffix(".jinja"): path.read_text() for path in folder.iterdir() if ".jinja" in path.name}
    return {name: text for name, text in sorted(found.items()) if not name.endswith("_training")}


@cache
def byte_level(template: str) -> Any:
    """A byte-level BPE tokenizer with every mark that `template` writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(
        ["the user and the assistant say that the answer is a function of its arguments"] * 3, trainer
    )
    return _with_marks(core, template)


def with_tokens(template: str, *marks: str) -> Any:
    """A byte-level tokenizer that has `marks` as well, the first of them for its bos token."""
    tokenizer = byte_level(template + "".join(marks))
    tokenizer.chat_template, tokenizer.bos_token = template, marks[0]
    return tokenizer


@cache
def sentence_piece(template: str) -> Any:
    """A tokenizer that marks beginnings with "▁", as those of Llama 2, Mistral 7B and Phi-3 do."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = ["▁", *ALPHABET, "▁a", "he", "▁t", "▁the", "an", "sw"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *bytes_, *letters])}
    merges = [("▁", "a"), ("h", "e"), ("▁", "t"), ("▁t", "he"), ("a", "n"), ("s", "w")]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    return _with_marks(core, template)


def _with_marks(core: Any, template: str) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    marks = sorted({*MARK.findall(template), "<s>", "</s>"})
    core.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in marks if not PLAIN.match(mark)]
    )
    core.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks if PLAIN.match(mark)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=template)
