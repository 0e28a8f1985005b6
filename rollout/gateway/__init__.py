"""An OpenAI-compatible gateway: agent programs that are not ours drive the policy, and their sessions are trajectories.

    gateway = Gateway(engine, renderer, sampling=Sampling(512), on_finished=outbox)
    app = Starlette(routes=gateway_routes(gateway))  # from quintain.rollout.gateway.routes

Table of contents: `chat` reads a request, `wishes` says which of its sampling settings are met, `dialect` puts messages
and tools into tokens and back, `conversations` keeps the turns of a session token-exact, `sessions` opens and ends
them, `routes` is HTTP.
"""

from quintain.rollout.gateway.gateway import Counters, Gateway
from quintain.rollout.gateway.limits import GatewayLimits
from quintain.rollout.gateway.outbox import Outbox
from quintain.rollout.gateway.wire import FailRequest, OpenSession, Overrides, RewardRequest, SessionStatus

__all__ = [
    "Counters",
    "FailRequest",
    "Gateway",
    "GatewayLimits",
    "OpenSession",
    "Outbox",
    "Overrides",
    "RewardRequest",
    "SessionStatus",
]
