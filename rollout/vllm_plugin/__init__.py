"""What quintain adds inside a vLLM server: a weight-transfer engine named `quintain` that loads a folder.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). It runs in vLLM's environment,
where quintain is installed without its dependencies: nothing here imports more of quintain than this package.
"""

from __future__ import annotations

BACKEND = "quintain"
"""What the server's `--weight-transfer-config '{"backend": "quintain"}'` names."""


def register() -> None:
    """Make the backend known to vLLM. Calling it again is harmless: vLLM may load its plugins twice in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, f"{__name__}.transfer", "FolderWeightTransfer")
