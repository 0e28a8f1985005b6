"""Bearer tokens, each with the name of who has it.

What always holds: a token is compared in a time that does not depend on what it is; where there are no tokens,
everybody is let in under one name.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quintain.failure import QuintainError, Stage
from quintain.nearest import IDENTIFIER
from quintain.serving.refusals import refused

ANYBODY: Final = "anybody"
"""The name of every client of a server without tokens."""
DEFAULT: Final = "default"
"""The name of a token that was given without one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Secrets by the name of their holder."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.secrets)

    @classmethod
    def single(cls, secret: str | None) -> Tokens:
        """One token, or none."""
        return cls({DEFAULT: secret} if secret else {})

    @classmethod
    def parsed(cls, text: str, source: str) -> Tokens:
        """One token a line, `name:secret` or a secret alone; `#` begins a comment. Raises QuintainError."""
        secrets: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, colon, secret = line.partition(":")
            name, secret = (name, secret) if colon else (DEFAULT, line)
            if not IDENTIFIER.fullmatch(name) or not secret.isascii() or not secret.isprintable() or " " in secret:
                raise QuintainError(
                    f"{source}, line {number}: expected name:secret, the name of letters, digits and -._, the secret"
                    " of printable ASCII without blanks"
                )
            if not secret or name in secrets or secret in secrets.values():
                raise QuintainError(f"{source}, line {number}: an empty secret, or a name or secret given twice")
            secrets[name] = secret
        if not secrets:
            raise QuintainError(f"{source} has no token: expected one a line, as name:secret")
        return cls(secrets)

    @classmethod
    def gathered(cls, text: str, source: str, file: Path | None) -> Tokens:
        """Those in `text`, which came from `source`, and in `file`, each one a line; none where neither has any.

        Raises QuintainError.
        """
        if file is not None:
            source = f"{file} and {source}" if text.strip() else str(file)
            try:
                text = f"{file.read_text()}\n{text}"
            except (OSError, UnicodeDecodeError) as error:
                raise QuintainError(f"cannot read the tokens in {file}: {error}") from None
        return cls.parsed(text, source) if text.strip() or file is not None else cls()

    def holder(self, authorization: str) -> str:
        """Whose token the header `authorization` has. Raises Refused (401)."""
        if not self.secrets:
            return ANYBODY
        given = authorization.removeprefix("Bearer ").encode()
        holders = [name for name, secret in self.secrets.items() if hmac.compare_digest(given, secret.encode())]
        if not holders:
            message = "this server wants its token: send it as `Authorization: Bearer …`"
            raise refused(message, Stage.REQUEST, status=401)
        return holders[0]
