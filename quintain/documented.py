"""Options as frozen pydantic models whose attributes' docstrings are the descriptions in the JSON schema.

What always holds: an option that a subclass has anew is described by its base where the subclass has no words for it.

pydantic reads such docstrings from the source as a class is made (`use_attribute_docstrings`), which is most of the
time that such a class takes. Here they are read where a schema is asked for, and nowhere else.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from textwrap import dedent
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class DocumentedModel(BaseModel):
    """Unknown names are refused, and values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        told: dict[str, str] = {}
        for owner in reversed(cls.__mro__):
            told |= attribute_docs(owner) if issubclass(owner, DocumentedModel) else {}
        for name, described in handler.resolve_ref_schema(schema).get("properties", {}).items():
            if name in told:
                described.setdefault("description", told[name])
        return schema


def attribute_docs(cls: type) -> dict[str, str]:
    """What the texts below the attributes in the body of `cls` say; nothing where its source cannot be had."""
    try:
        (defined,) = ast.parse(dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(defined, ast.ClassDef)
    found = {}
    for attribute, text in pairwise(defined.body):
        match attribute, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = inspect.cleandoc(said)
    return found
