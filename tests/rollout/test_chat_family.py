"""Families of the package `renderers`: the same ids as the model's own template, read by the same rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from renderers.base import create_renderer
from renderers.configs import config_from_name

from quintain.arrays import Ints, as_ints
from quintain.failure import QuintainError
from quintain.messages import FunctionCall, FunctionSpec, Message, ToolCall, ToolSpec, assistant, system, user
from quintain.rollout.chat import family
from quintain.rollout.chat.template import TemplateChat

from .chat_tokenizers import templates, with_tokens

FAMILIES = {
    "qwen3": "qwen3",
    "qwen3_instruct_2507": "qwen3",
    "qwen3_vl": "qwen3-vl",
    "qwen3_5_think": "qwen3.5",
    "qwen3_6": "qwen3.6",
    "qwen3_8": "qwen3.8",
    "gemma4_v5": "gemma4",
    "glm4moe": "glm-4.5",
    "deepseek_r1_distill": "deepseek-r1",
    "nemotron_3_nano": "nemotron-3",
    "nemotron_3_super": "nemotron-3",
    "nemotron_3_ultra": "nemotron-3-ultra",
    "nemotron_3_5_lightning": "nemotron-3.5",
    "llama3_2": "llama-3",
}
BOS = {"deepseek_r1_distill": "<｜begin▁of▁sentence｜>", "llama3_2": "<|begin_of_text|>", "gemma4_v5": "<bos>"}
MARKS = (
    "<|endoftext|><eos>[gMASK]<sop><arg_key></arg_key><arg_value></arg_value><tool_call></tool_call><think></think>"
    "<tool_response></tool_response><|end_of_text|><|eom_id|><|eot_id|><|python_tag|><|start_header_id|>"
    "<|end_header_id|><｜end▁of▁sentence｜><｜tool▁calls▁begin｜><｜tool▁calls▁end｜><｜tool▁call▁begin｜>"
    "<｜tool▁call▁end｜><｜tool▁sep｜><｜tool▁outputs▁begin｜><｜tool▁outputs▁end｜><｜tool▁output▁begin｜>"
    "<｜tool▁output▁end｜><｜User｜><｜Assistant｜><|observation|><|user|><|assistant|><|system|><|tool><tool|><|tool_call>"
    "<tool_call|><|tool_response><tool_response|><|channel><channel|><|turn><turn|><|think|><|image|><|audio|><|video|>"
    '<|image><image|><|audio><audio|><|"|><|vision_start|><|vision_end|><|image_pad|><|video_pad|>'
)
PARAMETERS = {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}}}
TOOL = ToolSpec(FunctionSpec("get", "gets", PARAMETERS))
CALL = ToolCall("abcdefgh1", FunctionCall("get", json.dumps({"text": "a", "count": 5})))
RESULT = Message("tool", "res", tool_call_id="abcdefgh1")
CONVERSATIONS = {
    "question": ([user("q")], []),
    "system": ([system("s"), user("q")], []),
    "answered": ([user("q"), assistant("w"), user("r")], []),
    "thought": ([user("q"), Message("assistant", "w", reasoning="hm"), user("r")], []),
    "tools": ([user("q")], [TOOL]),
    "called": ([system("s"), user("q"), Message("assistant", None, (CALL,)), RESULT], [TOOL]),
}


def tokenizer(name: str) -> Any:
    return with_tokens(templates()[name], BOS.get(name, "<|endoftext|>"), MARKS)


def chats(name: str) -> tuple[TemplateChat, TemplateChat]:
    """The same tokenizer's own template, and its family; Llama's date is today or pinned, so it is given."""
    options = {"date_string": "26 Jul 2024"} if FAMILIES[name] == "llama-3" else {}
    made = tokenizer(name)
    return TemplateChat(made, options=options), TemplateChat(made, renderer=FAMILIES[name], options=options)


def said(chat: TemplateChat, text: str) -> Ints:
    end = next(i for i in chat.stop_ids if i != chat._tokenizer.eos_token_id or len(chat.stop_ids) == 1)
    return as_ints([*chat._tokenizer.encode(text, add_special_tokens=False), end])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_the_ids_of_its_model_s_own_template(name: str) -> None:
    own, by_family = chats(name)
    for label, (messages, tools) in CONVERSATIONS.items():
        assert by_family.first(messages, tools).tolist() == own.first(messages, tools).tolist(), label
    assert (by_family.calls, by_family.stop_ids) == (own.calls, own.stop_ids)
    assert f"renderer {FAMILIES[name]}, " in by_family.about


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama3_2"])
def test_the_next_prompt_is_the_one_that_the_package_s_own_bridge_builds(name: str) -> None:
    own, by_family = chats(name)
    renderer = create_renderer(own._tokenizer, config_from_name(FAMILIES[name]))
    bridged = 0
    for tools, text, new in (([], "w", [user("r")]), ([TOOL], call_text(own), [RESULT])):
        prompt = own.first([user("q")], tools)
        thought = {"glm4moe": "\n<think>hm</think>\n"}.get(name, "hm\n</think>\n\n" if own._is_thinking(prompt) else "")
        sampled = said(own, thought + text)
        message = own.read(sampled, prompt_ids=prompt, tools=tools)
        for chat in (own, by_family):
            rendered = chat.extend(prompt, sampled, [user("q"), message], new, tools)
            bridge = renderer.bridge_to_next_turn(
                prompt.tolist(), sampled.tolist(), [m.to_openai() for m in new], tools=[as_openai(t) for t in tools]
            )
            if bridge is not None and rendered.fork is None:
                bridged += 1
                assert rendered.ids.tolist() == bridge.token_ids
    assert bridged or FAMILIES[name] in ("deepseek-r1", "gemma4"), "only these render anew"


def call_text(chat: TemplateChat) -> str:
    """A call as the template writes it."""
    ids, spans = chat.spans([user("q"), Message("assistant", None, (CALL,))], [TOOL])
    return chat.text(ids[spans[1].start : spans[1].end])


def as_openai(tool: ToolSpec) -> dict[str, Any]:
    function = tool.function
    about = {"name": function.name, "description": function.description, "parameters": dict(function.parameters)}
    return {"type": "function", "function": about}


def test_tools_that_a_family_leaves_out_are_written_out() -> None:
    made = with_tokens(templates()["deepseekv3"], "<｜begin▁of▁sentence｜>", MARKS)
    package = create_renderer(made, config_from_name("deepseek-v3"))
    assert "get" not in made.decode(package.render_ids([{"role": "user", "content": "q"}], tools=[as_openai(TOOL)]))
    chat = TemplateChat(made, renderer="deepseek-v3")
    assert '"name": "get"' in chat.text(chat.first([user("q")], [TOOL]))


def test_a_call_that_is_only_thought_of_is_made_by_the_package_s_reader_and_not_by_ours() -> None:
    own, by_family = chats("qwen3")
    prompt = own.first([user("q")], [TOOL])
    sampled = said(own, '<think>I call <tool_call>{"name": "get", "arguments": {}}</tool_call>')
    package = create_renderer(own._tokenizer, config_from_name("qwen3"))
    assert len(package.parse_response(sampled.tolist(), prompt_ids=prompt.tolist()).tool_calls) == 1
    for chat in (own, by_family):
        assert chat.read(sampled, prompt_ids=prompt, tools=[TOOL]).tool_calls == ()


def test_auto_is_the_family_of_this_very_model_and_else_the_template() -> None:
    made = tokenizer("qwen3")
    made.name_or_path = "Qwen/Qwen3-0.6B"
    chat = TemplateChat(made, renderer="auto")
    assert chat.choices["renderer"] == "qwen3"
    made.name_or_path = "somebody/Qwen3-tuned"
    assert TemplateChat(made, renderer="auto").choices["renderer"] == "template"
    made.name_or_path = ""


def test_a_family_that_is_not_there_does_not_fit_or_is_not_installed_is_one_line(monkeypatch: Any) -> None:
    made = tokenizer("qwen3")
    with pytest.raises(QuintainError, match=r"there is no renderer 'qwen33': did you mean 'qwen3'\?"):
        TemplateChat(made, renderer="qwen33")
    with pytest.raises(QuintainError, match="'kimi-k2' does not fit the tokenizer of '': ") as caught:
        TemplateChat(made, renderer="kimi-k2")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(family, "find_spec", lambda name: None)
    with pytest.raises(QuintainError, match=r"pip install 'quintain\[renderers\]'"):
        TemplateChat(made, renderer="qwen3")
    assert TemplateChat(made, renderer="auto").choices["renderer"] == "template"


def test_a_tokenizer_s_own_response_template_reads_calls_where_it_is_asked_to() -> None:
    from trl.chat_template_utils import add_response_schema

    made = add_response_schema(tokenizer("qwen3"))
    assert TemplateChat(made).calls == "hermes"
    chat = TemplateChat(made, calls="tokenizer")
    prompt = chat.first([user("q")], [TOOL])
    call = '<tool_call>\n{"name": "get", "arguments": {"count": 5}}\n</tool_call>'

    def read(text: str, closed: bool = True) -> Message:
        ids = said(chat, text)
        return chat.read(ids if closed else ids[:-1], prompt_ids=prompt, tools=[TOOL])

    found = read(f"<think>hm</think>{call}")
    assert [(c.function.name, c.function.arguments) for c in found.tool_calls] == [("get", '{"count": 5}')]
    assert found.reasoning == "hm"
    for text, closed in (("<tool_call>{bad}</tool_call>", True), (call, False), ("5", True)):
        assert read(text, closed) == Message("assistant", text)
    lost = read(f"hello {call} bye")
    assert (lost.text, len(lost.tool_calls)) == ("bye", 1)  # so it is not the first choice
    with pytest.raises(QuintainError, match="has no response_template"):
        TemplateChat(tokenizer("glm4moe"), calls="tokenizer")
