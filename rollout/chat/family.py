"""Model families as the package `renderers` writes them, in the place of a tokenizer's own chat template.

The package renders, and no more. Its readers make calls that were only thought of (`<think>I call <tool_call>…` of
Qwen3), drop what is said behind a call, and take a key given twice. So `TemplateChat` probes and reads these families
as it does any template; and what one of them leaves out (the tools of DeepSeek) is written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from quintain.failure import QuintainError, one_line
from quintain.nearest import one_of

TEMPLATE: Final = "template"
"""`rollout.renderer` for the tokenizer's own chat template."""


class RendererFamily:
    """The family `name`: renders as `tokenizer.apply_chat_template` does. QuintainError where it cannot be had."""

    def __init__(self, name: str, tokenizer: Any, options: Mapping[str, Any]) -> None:
        if find_spec("renderers") is None:
            raise QuintainError(
                f"rollout.renderer: {name!r} is of the package renderers: pip install 'quintain[renderers]', or take"
                f" {TEMPLATE!r}, the tokenizer's own chat template"
            )
        known = ["auto", TEMPLATE, *sorted({*_families().values()})]
        if name not in known:
            raise QuintainError(f"rollout.renderer: there is no renderer {name!r}{one_of(name, known)}")
        self.name, self._tokenizer = name, tokenizer
        self.added_tokens_decoder = tokenizer.added_tokens_decoder
        self._made: dict[str, Any] = {}
        try:
            self._with(options)
        except Exception as error:  # the boundary: whatever a family asks of a tokenizer, a file or a network
            raise QuintainError(
                f"rollout.renderer: {name!r} does not fit the tokenizer of {tokenizer.name_or_path!r}:"
                f" {one_line(str(error))}"
            ) from None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
        **options: Any,
    ) -> str:
        """The text of a rendering; what the family raises where it refuses the messages."""
        renderer = self._with(options)
        ids = renderer.render_ids(list(messages), tools=tools, add_generation_prompt=add_generation_prompt)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _with(self, options: Mapping[str, Any]) -> Any:
        """The renderer with `options` of its template, made once."""
        from renderers.base import create_renderer
        from renderers.configs import config_from_name

        key = repr(sorted(options.items()))
        if key not in self._made:
            made = create_renderer(self._tokenizer, config_from_name(self.name), chat_template_kwargs=options)
            self._made[key] = made
        return self._made[key]


def family_of(tokenizer: Any) -> str | None:
    """The family that `renderers`, where it is installed, has for this very model; None where it knows none."""
    name = tokenizer.name_or_path
    if find_spec("renderers") is None or not name or Path(name).exists():  # a folder's model has no name to go by
        return None
    return _families().get(name)


def _families() -> Mapping[str, str]:
    from renderers.base import MODEL_RENDERER_MAP

    found: Mapping[str, str] = MODEL_RENDERER_MAP
    return found
