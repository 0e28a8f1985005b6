"""Bearer tokens: who has which, and what they may do.

What always holds: a token is compared in a time that does not depend on what it is; where there are no tokens,
everybody is let in under one name; a role may do whatever the roles below it may, and an agent's key opens its own
session and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from quintain.failure import QuintainError, Stage
from quintain.nearest import IDENTIFIER
from quintain.serving.refusals import refused

ANYBODY: Final = "anybody"
"""The name of every client of a server without tokens."""
DEFAULT: Final = "default"
"""The name of a token that was given without one."""


class Role(IntEnum):
    """What a token is for, from the least to the most that it may do."""

    AGENT = 0
    """Call the policy within one session."""
    TRAINER = 1
    """Publish weights, have episodes played and take their trajectories."""
    OPERATOR = 2
    """Everything."""


GIVEN: Final = {role.name.lower(): role for role in (Role.TRAINER, Role.OPERATOR)}
"""The roles of tokens that are given out; an agent gets its key with its session."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request is from. An agent is the agent of one `session`."""

    name: str
    role: Role = Role.OPERATOR
    session: str | None = None

    def may(self, role: Role, session: str | None) -> bool:
        """Whether what is for `role`, in `session`, is for this one."""
        return self.role >= role and self.session in (None, session)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Secrets by the name of their holder, and the roles of those holders who are no operators."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    roles: Mapping[str, Role] = field(default_factory=dict)
    _seal: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.secrets)

    @classmethod
    def parsed(cls, text: str, source: str) -> Tokens:
        """One token a line, `name:secret`, `name@trainer:secret` or a secret alone; `#` begins a comment.

        Raises QuintainError.
        """
        secrets: dict[str, str] = {}
        roles: dict[str, Role] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, colon, secret = line.partition(":")
            name, secret = (name, secret) if colon else (DEFAULT, line)
            name, at, role = name.partition("@")
            if at and role not in GIVEN:
                raise QuintainError(f"{source}, line {number}: a role is {' or '.join(GIVEN)}, not {role[:40]!r}")
            roles |= {name: GIVEN[role]} if at else {}
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
        return cls(secrets, roles)

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

    def agent_key(self, session: str) -> str:
        """The key of the agent of `session`: the same each time, until the server starts again."""
        seal = hmac.digest(self._seal, session.encode(), hashlib.sha256).hex()
        return f"{session}.{seal}"

    def admit(self, authorization: str, role: Role, session: str | None = None) -> Principal:
        """Who the header `authorization` is from. Raises Refused: 401 where nobody's, 403 where it is not for them.

        `role` is whom the page is for, and `session` which one it is about.
        """
        who = self._who(authorization.removeprefix("Bearer "))
        if who is None:
            message = "this server wants its token: send it as `Authorization: Bearer …`"
            raise refused(message, Stage.REQUEST, status=401)
        if not who.may(role, session):
            mine = "an agent's key is for its own session" if who.session else f"a {who.role.name.lower()}'s token"
            message = f"{mine}: this page wants {'another' if role <= who.role else f'the role {role.name.lower()}'}"
            raise refused(message, Stage.REQUEST, status=403)
        return who

    def _who(self, given: str) -> Principal | None:
        if not self.secrets:
            return Principal(ANYBODY)
        mine = [name for name, secret in self.secrets.items() if hmac.compare_digest(given.encode(), secret.encode())]
        if mine:
            return Principal(mine[0], self.roles.get(mine[0], Role.OPERATOR))
        session = given.rpartition(".")[0]
        if session and hmac.compare_digest(given.encode(), self.agent_key(session).encode()):
            return Principal(f"agent of {session}", Role.AGENT, session)
        return None
