"""Which verifiers a server offers, as `GET /v1/verifiers` tells it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from quintain.failure import QuintainError
from quintain.verifiers.base import Verifier
from quintain.verifiers.registry import available_verifiers, get_verifier, verifier_class
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.policy import AccessPolicy
from quintain.verifiers.service.wire import VerifierInfo, VerifierList


async def offers(policy: AccessPolicy, limits: ServiceLimits) -> VerifierList:
    """All verifiers that are installed, those that this server does not offer too, with the reason."""
    return VerifierList(tuple([await _offer(name, policy, limits) for name in available_verifiers()]))


async def _offer(name: str, policy: AccessPolicy, limits: ServiceLimits) -> VerifierInfo:
    found = await asyncio.to_thread(verifier_class, name)  # it may import much
    schema = await asyncio.to_thread(found.options_schema) if found is not None else {}
    names = schema.get("properties", {})
    version, problem = None, None
    try:
        version = await _version(name, policy.options(name, {}, limits))
    except QuintainError as error:
        problem = str(error)
    return VerifierInfo(
        name=name,
        description=_first_line(found),
        cost="" if found is None else found.cost.name.lower(),
        version=version,
        available=version is not None or _wants_options(schema, name, policy),
        problem=problem,
        options=schema,
        operator_options=policy.operator_options(name, names),
    )


async def _version(name: str, options: Mapping[str, Any]) -> str:
    async with await asyncio.to_thread(get_verifier, name, **options) as verifier:
        return verifier.version


def _wants_options(schema: Mapping[str, Any], name: str, policy: AccessPolicy) -> bool:
    """Whether all that the verifier `name` lacks are options that clients may give."""
    lacking = set(schema.get("required", ())) - set(policy.presets.get(name, {}))
    found = verifier_class(name)
    allowed = found is None or policy.allows(name, found.cost)
    return allowed and bool(lacking) and not policy.operator_options(name, lacking)


def _first_line(found: type[Verifier] | None) -> str:
    text = inspect.getdoc(found) if found is not None else None
    return (text or "").partition("\n")[0]
