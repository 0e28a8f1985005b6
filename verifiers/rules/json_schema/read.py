"""Data as JSON has it, read from JSON, YAML, TOML or XML that may be hostile.

What always holds: the result is made of dicts with text keys, lists, texts, finite numbers, booleans and None, at
most `MAX_DEPTH` deep; whatever is not, raises `NotData`. A key given twice is refused in every syntax. Nothing is
constructed, fetched or expanded: YAML has no tags beyond JSON's types and no aliases (so no alias bombs), XML has no
document type (so no entities and no external DTD).

YAML is 1.1, as PyYAML reads it: `no` is false; but dates stay texts. TOML's dates become texts in ISO 8601. XML's
root element becomes `{name: value}`: an element that has only text is that text; another is a dict of its children by
name (a list where there are several of one name), its attributes as `@name` and its own text as `#text`.
"""

from __future__ import annotations

import datetime
import json
import math
import tomllib
from collections.abc import Callable
from typing import Any, Final
from xml.parsers import expat

import yaml

from quintain.strict_json import NotJson, distinct, read_json

MAX_DEPTH: Final = 64


class NotData(Exception):
    """The text is not data in that syntax; the message says why."""


def read(text: str, syntax: str, *, xml_scalars: str = "text") -> Any:
    """The data in `text`. Raises `NotData`."""
    readers: dict[str, Callable[[], Any]] = {
        "json": lambda: read_json(text),
        "yaml": lambda: _yaml(text),
        "toml": lambda: _toml(text),
        "xml": lambda: _xml(text, scalars=xml_scalars == "json"),
    }
    try:
        data = readers[syntax]()
        return _plain(data, MAX_DEPTH)
    except NotJson as error:
        raise NotData(str(error)) from None
    except (RecursionError, MemoryError):
        raise NotData("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, tags and dates, whose keys differ."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise NotData("YAML aliases are not read")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotData("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    if not all(isinstance(key, str) for key, _ in pairs):
        raise NotData("a key is no text")
    return distinct(pairs)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # int("0b") in YAML's own constructors is a ValueError
        raise NotData(f"it is no YAML: {getattr(error, 'problem', None) or error}") from None


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise NotData(f"it is no TOML: {error}") from None


def _xml(text: str, *, scalars: bool) -> Any:
    tree = _Tree(scalars)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = tree.refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.text
    try:
        parser.Parse(text.strip().encode("utf-8", "surrogatepass"), True)
    except (expat.ExpatError, ValueError) as error:
        raise NotData(f"it is no XML: {error}") from None
    return tree.root


class _Tree:
    """Builds the data while expat reads."""

    def __init__(self, scalars: bool) -> None:
        self.root: dict[str, Any] = {}
        self._scalars = scalars
        self._open: list[tuple[dict[str, Any], list[str]]] = [(self.root, [])]

    def refuse(self, *_: Any) -> None:
        raise NotData("a document type in XML is not read")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > MAX_DEPTH:
            raise NotData("it is nested too deeply")
        self._open.append(({f"@{key}": self._scalar(value) for key, value in attributes.items()}, []))

    def end(self, name: str) -> None:
        parts, texts = self._open.pop()
        text = "".join(texts).strip()
        if parts and text:
            parts["#text"] = self._scalar(text)
        value = parts or self._scalar(text)
        around = self._open[-1][0]
        if name not in around:
            around[name] = value
        elif isinstance(around[name], list):
            around[name].append(value)
        else:
            around[name] = [around[name], value]

    def text(self, data: str) -> None:
        self._open[-1][1].append(data)

    def _scalar(self, text: str) -> Any:
        if not self._scalars:
            return text
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return text if isinstance(value, (dict, list, str)) else value


def _plain(value: Any, depth: int) -> Any:
    """`value` as JSON has it."""
    if depth == 0:
        raise NotData("it is nested too deeply")
    match value:
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise NotData("a key is no text")
            return {key: _plain(part, depth - 1) for key, part in value.items()}
        case list():
            return [_plain(part, depth - 1) for part in value]
        case float():
            if not math.isfinite(value):
                raise NotData("a number is infinite or none")
            return value
        case str() | bool() | int() | None:
            return value
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
    raise NotData(f"a {type(value).__name__} is no JSON")
