"""The JSON-schema verifier: is the answer well-formed data of the wanted shape?"""

from quintain.verifiers.rules.json_schema.verifier import (
    JsonSchemaOptions,
    JsonSchemaVerifier,
    make_json_schema_verifier,
)

__all__ = ["JsonSchemaOptions", "JsonSchemaVerifier", "make_json_schema_verifier"]
