"""Which part of a model's text is the program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.code.extract import Block, Code, assemblies, blocks, body_of, code_in, files_in

PYTHON = frozenset({"python", "py"})
TEXT = """First:
```python
one = 1
```
```bash
ls
```
```
output
```
~~~py
two = 2
~~~
```python
three = """


def test_the_last_complete_block_of_the_language_is_the_program() -> None:
    assert code_in(TEXT, PYTHON, "last") == Code("two = 2\n", True)
    assert code_in(TEXT, PYTHON, "first") == Code("one = 1\n", True)
    assert code_in(TEXT, PYTHON, "all") == Code("one = 1\n\n\ntwo = 2\n", True)


def test_a_block_without_a_language_counts_where_none_has_the_right_one() -> None:
    assert code_in("```\na\n```\n```js\nb\n```", PYTHON, "last") == Code("a\n", True)
    assert code_in("```js\nb\n```", PYTHON, "last") is None


def test_an_open_block_is_no_code_and_a_text_without_fences_is_taken_whole() -> None:
    assert code_in("```python\na = 1\n", PYTHON, "last") is None
    assert code_in("    return 1", PYTHON, "last") == Code("    return 1", False)
    assert code_in(" \n", PYTHON, "last") is None


def test_a_longer_fence_holds_shorter_ones_and_backticks_within_a_line_open_nothing() -> None:
    assert blocks("````python\n```\nx\n```\n````") == [Block("python", None, "```\nx\n```\n")]
    assert blocks("```x``` and\n```python\ny\n```") == [Block("python", None, "y\n")]


@pytest.mark.parametrize(
    "info",
    [
        "python src/a.py",
        "python file=src/a.py",
        'python title="src/a.py"',
        "src/a.py",
        "python:src/a.py",
        "{.python} src/a.py",
    ],
)
def test_a_fence_may_name_a_file(info: str) -> None:
    assert files_in(f"```{info}\nx = 1\n```") == {"src/a.py": "x = 1\n"}


def test_thinking_does_not_count_and_indentation_does() -> None:
    assert body_of("<think>```python\nbad\n```</think>    return 1", True, None) == "    return 1"
    assert body_of("<think>no end", True, None) is None
    assert body_of("<answer>  a</answer> b", True, "answer") == "  a"


def test_code_is_assembled_with_the_prompt_likeliest_first() -> None:
    prompt = 'import math\n\ndef f(x):\n    """Doc."""\n'
    assert assemblies(Code("    return x\n", False), prompt, "f")[0] == prompt + "    return x\n"
    assert prompt + "    return x" in assemblies(Code("return x", False), prompt, "f")
    whole = "def f(x):\n    return x\n"
    assert assemblies(Code(whole, True), prompt, "f") == [f"{prompt}\n{whole}", whole]
    assert assemblies(Code(whole, True), "", "f") == [whole]


@given(st.lists(st.text(st.characters(blacklist_characters="`~\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", codec="utf-8"))))
def test_every_fenced_text_is_found_as_it_is(texts: list[str]) -> None:
    whole = "".join(f"said\n```python\n{text}\n```\n" for text in texts)
    assert [block.code for block in blocks(whole)] == [text + "\n" for text in texts]


@given(st.text(st.sampled_from("`~\n python<>/think")))
def test_no_text_breaks_the_extraction(text: str) -> None:
    for choice in ("first", "last", "all"):
        found = code_in(text, PYTHON, choice)  # type: ignore[arg-type]
        assert found is None or found.text.replace("\n", "") in text.replace("\n", "") or choice == "all"
    files_in(text)
    body_of(text, True, "python")
