"""The code in a model's text. Pure, linear in the text; nothing is parsed or compiled here, since that is done to
untrusted text only inside the sandbox.

What always holds: only complete fenced blocks count where there is any; an explicit language beats none, and another
language's block is no code. Without any fence the whole text is taken, and whoever compiles it says whether it is code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from quintain.fences import fenced_blocks, has_fence

Choice = Literal["first", "last", "all"]

NAMED: Final = re.compile(r"""(?:(?:file|filename|path|title|name)=)?["']?([\w.-]+(?:/[\w.-]+)*\.\w+)["']?""")
MAX_BLOCKS: Final = 1000


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the language that its fence names ("" for none), a file name if there is one, what is in it."""

    language: str
    path: str | None
    code: str


@dataclass(frozen=True, slots=True)
class Code:
    """The code that was found, and whether a fence said that it is code."""

    text: str
    fenced: bool


def code_in(text: str, fences: frozenset[str], choice: Choice, defines: str | None = None) -> Code | None:
    """The code in `text` whose language is one of `fences`, or None; of blocks, those that define the name `defines`
    if any do: the others are examples of its use."""
    if not has_fence(text):
        return Code(text, False) if text.strip() else None
    found = blocks(text)
    chosen = [block for block in found if block.language in fences] or [block for block in found if not block.language]
    if not chosen:
        return None
    if defines is not None and choice != "all":
        chosen = [block for block in chosen if defining(defines).search(block.code)] or chosen
    if choice == "all":
        return Code("\n\n".join(block.code for block in chosen), True)
    return Code(chosen[0 if choice == "first" else -1].code, True)


def files_in(text: str) -> dict[str, str]:
    """The files in `text`: fenced blocks whose fence names one, as ```python src/a.py; of two, the last."""
    return {block.path: block.code for block in blocks(text) if block.path is not None}


def blocks(text: str) -> list[Block]:
    """The complete fenced blocks of `text`, in order, the last thousand of them."""
    return [_block(info, code) for info, code in fenced_blocks(text)][-MAX_BLOCKS:]


def _block(info: str, code: str) -> Block:
    language, path = "", None
    for number, word in enumerate(info.replace(":", " ").split()[:4]):
        named = NAMED.fullmatch(word)
        if named is not None and path is None:
            path = named[1]
        elif number == 0:
            language = word.strip("{}.").lower()
    return Block(language, path, code)


def defining(name: str) -> re.Pattern[str]:
    """Finds a definition of `name` in code: a function, a class, a method or a value."""
    name = re.escape(name)
    return re.compile(
        rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)", re.MULTILINE
    )


def assemblies(code: Code, prompt: str, entry: str) -> list[str]:
    """The programs that `code` may mean, likeliest first: with the prompt before it, which it continues or whose
    imports it needs, or alone. The first that compiles is meant."""
    text = code.text
    if not prompt:
        return [text]
    if re.search(rf"^(?:async[ \t]+def|def|class)[ \t]+{re.escape(entry)}\b", text, re.MULTILINE):
        return [f"{prompt}\n{text}", text]
    head = prompt if prompt.endswith("\n") else prompt + "\n"
    indented = "\n".join("    " + line for line in text.splitlines())
    return [head + text, f"{head}    {text.lstrip()}", head + indented, text]
