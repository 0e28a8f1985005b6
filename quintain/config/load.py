"""Reading an experiment: YAML, overrides, and one clear line for every mistake.

Each problem names the field's path, what was expected, what came, and the nearest right name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from quintain.config.algorithms import AlgorithmConfig
from quintain.config.schema import ExperimentConfig
from quintain.config.section import Section
from quintain.failure import QuintainError
from quintain.files import write_whole
from quintain.nearest import one_of


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-6 as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise QuintainError(
                f"line {key_node.start_mark.line + 1}: '{key}' is given twice, first in line {seen[key]}"
            )
        seen[key] = key_node.start_mark.line + 1
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment in the YAML file `path`, with `a.b=value` overrides; QuintainError on any mistake."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise QuintainError(f"cannot read the experiment {path}: {error.strerror or error}") from None
    return parse_config(text, overrides, origin=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, origin: str = "experiment") -> ExperimentConfig:
    """The experiment that the YAML `text` describes; `origin` names it in messages."""
    data = _read(text, origin)
    for override in overrides:
        _override(data, override)
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        lines = list(problems(error, ExperimentConfig, data))
        raise QuintainError("\n".join(f"{origin}: {line}" for line in lines)) from None


def dump_config(config: ExperimentConfig) -> str:
    """The resolved experiment as YAML, every default written out; tokens are left out."""
    return yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)


def plain_config(section: Section, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """`section` as plain values, with all defaults or none, without what is never shown (tokens)."""
    data: dict[str, Any] = section.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not field.repr:
            data.pop(name, None)
        elif name in data and isinstance(value, Section):
            data[name] = plain_config(value, exclude_defaults=exclude_defaults)
        elif name in data and isinstance(value, (list, tuple)) and all(isinstance(each, Section) for each in value):
            data[name] = [plain_config(each, exclude_defaults=exclude_defaults) for each in value]
    return data


def write_config(config: ExperimentConfig, path: Path) -> None:
    """Write the resolved experiment to `path`, for its owner alone: options may hold keys. Raises QuintainError."""
    write_whole(path, dump_config(config), mode=0o600)


def _read(text: str, origin: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise QuintainError(f"{origin}: {line}this is not YAML: {error.problem}") from None
    except QuintainError as error:
        raise QuintainError(f"{origin}: {error}") from None
    if not isinstance(data, dict):
        raise QuintainError(f"{origin}: expected sections such as 'model:' and 'trainer:', got {data!r}")
    return data


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise QuintainError(f"--set {override}: expected path=value, such as trainer.learning_rate=1e-6")
    *parents, leaf = path.split(".")
    at = data
    for part in parents:
        inner = at.setdefault(part, {})
        if inner is None:
            inner = at[part] = {}
        if not isinstance(inner, dict):
            raise QuintainError(f"--set {override}: '{part}' is a value ({inner!r}), not a section")
        at = inner
    try:
        at[leaf] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise QuintainError(f"--set {override}: '{text}' is not a YAML value") from None


def problems(error: ValidationError, model: type[BaseModel], data: Any) -> Iterator[str]:
    """One line per mistake in `error`, with the field's path and the fix."""
    seen: set[str] = set()
    for item in error.errors(include_url=False):
        line = _problem(item, model)
        if line not in seen:
            seen.add(line)
            yield line


def _problem(item: ErrorDetails, model: type[BaseModel]) -> str:
    kind, got, context = item["type"], item.get("input"), item.get("ctx", {})
    section, path = _place(model, item["loc"])
    if kind == "extra_forbidden":
        name = str(item["loc"][-1])
        return f"{path}: {_elsewhere(name, section) or f'no such field{one_of(name, list(section.model_fields))}'}"
    if kind == "missing":
        return f"{path}: required, and not given"
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return f"{path}.algorithm: no such algorithm: '{context['tag']}'{one_of(str(context['tag']), known)}"
    if kind == "literal_error":
        return f"{path}: expected {context.get('expected')}, got {got!r}{one_of(str(got), _choices(context))}"
    if kind == "value_error":
        message = str(item["msg"]).removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}: expected a section with fields, got {got!r}"
    message = str(item["msg"]).replace("Input should be", "expected")
    return f"{path}: {message}, got {got!r}"


def _choices(context: Mapping[str, Any]) -> list[str]:
    return [part.strip(" '") for part in str(context.get("expected", "")).replace(" or ", ",").split(",")]


def _place(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[type[BaseModel], str]:
    """The section that `loc` is in or is, and the path to show: without the names that pydantic gives to choices."""
    path: list[str] = []
    choices: list[type[BaseModel]] = []
    for part in loc:
        chosen = [choice for choice in choices if part in _names(choice)]
        if chosen:
            model, choices = chosen[0], []
            continue
        path.append(str(part))
        field = model.model_fields.get(str(part))
        choices = list(_models(field.annotation)) if field is not None else []
        if choices and not _names(choices[0]):
            model, choices = choices[0], []
    return model, ".".join(path)


def _names(section: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `algorithm` for which a `trainer` section is read as `section`."""
    field = section.model_fields.get("algorithm")
    return get_args(field.annotation) if field is not None else ()


def _elsewhere(name: str, section: type[BaseModel]) -> str | None:
    """What to say where `name` is no option of this algorithm but of others."""
    others = [having for having in _models(AlgorithmConfig) if name in having.model_fields]
    if not _names(section) or not others:
        return None
    of = ", ".join(name for having in others for name in _names(having))
    return f"not an option of {_names(section)[0]}: {name} is an option of {of}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation) if get_origin(annotation) else ():
            yield from _models(part)
