"""Which part of a model's text is the program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.code.extract import Block, Code, assemblies, blocks, code_in, files_in

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


def test_fences_as_models_write_them() -> None:
    assert code_in("def f():\n    return 1\n```\nThis returns one.", PYTHON, "last") == Code(
        "def f():\n    return 1\n", True
    )
    assert code_in("- x\n\n    ```python\n    if a:\n        b\n    ```", PYTHON, "last") == Code(
        "if a:\n    b\n", True
    )
    assert code_in("a\n```\nUse:\n```python\nb\n```", PYTHON, "last") == Code("b\n", True)
    inner = "def f():\n    '''\n    ```\n    x\n    ```\n    '''\n"
    assert code_in(f"```python\n{inner}```", PYTHON, "last") == Code(inner, True)


def test_of_several_blocks_the_last_that_defines_the_entry_point_is_meant() -> None:
    text = "```python\ndef f(): return 0\n```\n```python\nf = lambda: 1\n```\n```python\nprint(f())\n```"
    assert code_in(text, PYTHON, "last", "f") == Code("f = lambda: 1\n", True)
    assert code_in(text, PYTHON, "last", "g") == Code("print(f())\n", True)
