"""Weights from the trainer's GPUs straight into running servers, through vLLM's own NCCL and IPC engines.

NOT TESTED: written against vLLM 0.32's classes on machines without a GPU. The canary that ends every publish is what
tells whether it works on yours; `transfer: folder` is the way that is tested.

The trainer's side. The servers at `rollout.vllm.urls` were started with the flag --weight-transfer-config
'{"backend": "nccl"}' (or "ipc", on the same machine, with VLLM_ALLOW_INSECURE_SERIALIZATION=1 on both sides), and vLLM
is installed beside the trainer. A publish is two things at once: the rollout server pauses the replicas and waits for
the version's label (`Holdings` with `direct`), and the trainer, as soon as they are paused, sends, then sets the label.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import httpx

from quintain.calling.connections import http_client
from quintain.failure import FailureError, FailureKind, Stage

PAUSED_S = 120.0
POLL_S = 0.02


def direct_label(version: int) -> str:
    """What the trainer has a server call the weights of `version` once it has sent them."""
    return f"direct-{version}"


class DirectTransfer:
    """Sends what `tensors()` yields, (name, tensor on the GPU) under the plain model's names, to every server."""

    def __init__(
        self,
        tensors: Callable[[], Iterable[tuple[str, Any]]],
        urls: Sequence[str],
        *,
        backend: Literal["nccl", "ipc"],
        api_key: str | None = None,
    ) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self._servers = [http_client(url, api_key, timeout=600.0) for url in urls]
        sizes = [int(server.get("/get_world_size").json()["world_size"]) for server in self._servers]
        self._client = _Fan(self._servers, sizes)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(backend, 1 + sum(sizes)), client=self._client, source=_source(tensors)
        )
        self._thread = ThreadPoolExecutor(max_workers=1)

    def begin(self, version: int) -> Future[None]:
        """Send `version` as soon as every server is paused; the future ends when all have it."""
        return self._thread.submit(self._send, version)

    def close(self) -> None:
        """Let go of the servers."""
        self._engine.shutdown()
        self._thread.shutdown(wait=False)
        self._client.close()

    def _send(self, version: int) -> None:
        deadline = time.monotonic() + PAUSED_S
        while not all(server.get("/is_paused").json()["is_paused"] for server in self._servers):
            if time.monotonic() > deadline:
                message = f"the vLLM servers were not paused within {PAUSED_S:.0f} s: nothing was sent"
                raise FailureError.of(FailureKind.TIMEOUT, Stage.PUBLISH, message)
            time.sleep(POLL_S)
        self._engine.send_weights()
        for server in self._servers:
            server.post("/update_weight_version", json={"new_version": direct_label(version)}).raise_for_status()


class _Fan:
    """vLLM's client protocol (`VLLMWeightSyncClient`) over several servers: every call goes to all of them at once.

    NCCL ranks: the trainer is 0, the workers of the servers follow in their order.
    """

    def __init__(self, servers: Sequence[httpx.Client], sizes: Sequence[int]) -> None:
        self._servers, self._sizes = servers, sizes
        self._threads = ThreadPoolExecutor(max_workers=max(1, len(servers)))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        bodies, offset = [], int(init_info.get("rank_offset", 0))
        for size in self._sizes:
            own = {"rank_offset": offset} if "rank_offset" in init_info else {}
            bodies.append({"init_info": init_info | own})
            offset += size
        self._all("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._all("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.clients import _json_safe_update_payload

        self._all("/update_weights", [{"update_info": _json_safe_update_payload(update_info)}] * len(self._servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("/finish_weight_update", [{"weight_version": weight_version}] * len(self._servers))

    def close(self) -> None:
        self._threads.shutdown(wait=False)
        for server in self._servers:
            server.close()

    def _all(self, path: str, bodies: Sequence[Any] | None = None) -> None:
        def post(server: httpx.Client, body: Any) -> None:
            server.post(path, json=body).raise_for_status()

        for _ in self._threads.map(post, self._servers, bodies or [None] * len(self._servers)):
            pass


def _init_info(backend: str, world_size: int) -> Any:
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=0)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    address = socket.gethostbyname(socket.gethostname())
    return NCCLTrainerInitInfo(address, port, world_size, rank=0)


def _source(tensors: Callable[[], Iterable[tuple[str, Any]]]) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Published(WeightSource):  # type: ignore[misc]
        """The policy, as vLLM wants to read it: announced, then iterated afresh for each publish."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors()]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            yield from tensors()

    return Published()
