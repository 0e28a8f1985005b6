"""Reading and validating, in a worker: a schema's patterns may take for ever, its references turn in circles."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend, validator_for
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from quintain.verdict import Outcome
from quintain.verifiers.rules.json_schema.read import NotData, read
from quintain.verifiers.rules.json_schema.schema import FORMATS, prepared
from quintain.verifiers.text import shown

MAX_PROBLEMS: Final = 5


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on `{"text", "syntax", "xml_scalars", "schema", "check_formats"}`."""
    try:
        schema = prepared(item["schema"], formats=item["check_formats"])
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except (SchemaError, RecursionError, ValueError, TypeError) as error:
        return _bad(f"it is no JSON Schema: {getattr(error, 'message', error)}")
    try:
        data = read(item["text"], item["syntax"], xml_scalars=item["xml_scalars"])
    except NotData as error:
        return {"outcome": Outcome.UNPARSABLE, "detail": {"reason": shown(str(error))}}
    # A registry of its own: the default one fetches what a $ref names.
    formats = FORMATS if item["check_formats"] else None
    validator = extend(kind, {"multipleOf": multiple_of})(schema, registry=REGISTRY, format_checker=formats)
    try:
        problems = [
            {"path": shown(error.json_path), "problem": shown(error.message)}
            for error in islice(validator.iter_errors(data), MAX_PROBLEMS)
        ]
    except Unresolvable as error:
        return _bad(f"it refers to what is not in it: {error}")
    except RecursionError:
        return _bad("its references turn in circles")
    return {
        "outcome": Outcome.WRONG if problems else Outcome.CORRECT,
        "detail": {"problems": problems} if problems else {},
    }


def multiple_of(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """In decimals, as both were written: 19.99 is a multiple of 0.01."""
    if validator.is_type(instance, "number") and Decimal(repr(instance)) % Decimal(repr(factor)):
        yield ValidationError(f"{instance!r} is not a multiple of {factor}")


def _bad(message: str) -> dict[str, Any]:
    return {"outcome": Outcome.BAD_REFERENCE, "message": f"the schema cannot be used: {shown(message)}"}
