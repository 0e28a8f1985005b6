"""An OpenAI-compatible gateway: agent programs that are not ours drive the policy, and their sessions are trajectories.

    gateway = Gateway(engine, chat, sampling=Sampling(512), on_finished=finished)
    app = Starlette(routes=gateway_routes(gateway))  # from quintain.rollout.gateway.routes

Table of contents: `chat` reads a request and settles how it is sampled, `conversations` keeps the turns of a session
token-exact, `calls` samples and records one call, `session` is what becomes of a session, `gateway` opens and ends
them, `answers` and `errors` are what an agent is given, `routes` is HTTP.
"""

from quintain.rollout.gateway.gateway import Gateway, GatewayLimits, Outbox
from quintain.rollout.gateway.wire import FailRequest, OpenSession, Overrides, RewardRequest, SessionStatus

__all__ = [
    "FailRequest",
    "Gateway",
    "GatewayLimits",
    "OpenSession",
    "Outbox",
    "Overrides",
    "RewardRequest",
    "SessionStatus",
]
