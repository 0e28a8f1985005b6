"""Loading a published folder into a running vLLM model.

Invariants:
- weights whose names or shapes are not the model's are refused before anything is changed: the old ones stay in place;
- what vLLM derives from weights (prepacked CPU linears, fused projections) is derived anew, the tied output layer too;
- the file is read while the call lasts and not held: its writer may use it again afterwards.

vLLM reloads layer by layer (its `model_loader.reload`): a layer's parameters are made again, filled, processed, and
copied into the storage that the kernels know. A tied output layer gets no tensors of its own, so that reload passes it
over, and its prepacked copy of the embedding on CPUs would stay the old one without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from quintain.rollout.vllm_plugin.layout import HEAD, Layout, expected_layout, first_difference

FILE = "model.safetensors"


@dataclass
class FolderInit(WeightTransferInitInfo):  # type: ignore[misc]
    """There is nothing to agree on."""


@dataclass
class FolderUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Load `path`/model.safetensors; with `check`, only say whether it could be loaded."""

    path: str
    check: bool = False


class FolderWeightTransfer(WeightTransferEngine[FolderInit, FolderUpdate]):  # type: ignore[misc]
    """The backend `quintain`: one `update_weights` call is a whole update."""

    init_info_cls = FolderInit
    update_info_cls = FolderUpdate
    supports_draft_weight_update = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._layout: Layout | None = None

    def init_transfer_engine(self, init_info: FolderInit) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Nothing yet: an update that is refused must not have begun."""

    def finish_weight_update(self) -> None:
        """Nothing more: `receive_weights` has done it all."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Check, and load unless only the check is asked for. ValueError with one line where it is refused."""
        self.receive_weights(self.parse_update_info(update_info))

    @torch.no_grad()
    def receive_weights(self, update_info: FolderUpdate) -> None:
        """As `update_weights`. An empty path is nothing to check: so a client asks whether this backend is here."""
        if not update_info.path:
            return
        file = Path(update_info.path) / FILE
        if not file.is_file():
            raise ValueError(f"there are no weights at {file}")
        with safe_open(file, framework="pt", device="cpu") as tensors:
            self._refuse_others(file, {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
            if not update_info.check:
                self._load(tensors)

    def _refuse_others(self, file: Path, found: Layout) -> None:
        if self._layout is None:
            self._layout = expected_layout(self.model_config.hf_config)
        if difference := first_difference(self._layout, found, tied=self._tied):
            raise ValueError(f"{file} does not hold this model's weights: {difference}")

    def _load(self, tensors: Any) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        def named() -> Iterator[tuple[str, torch.Tensor]]:
            for name in tensors.keys():  # noqa: SIM118 - safetensors' handle is no mapping
                if not (self._tied and name == HEAD):
                    yield name, tensors.get_tensor(name).to(self.device)

        initialize_layerwise_reload(self.model)
        self.model.load_weights(named())
        finalize_layerwise_reload(self.model, self.model_config)
        self._derive_tied_heads()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    @property
    def _tied(self) -> bool:
        return bool(getattr(self.model_config.hf_text_config, "tie_word_embeddings", False))

    def _derive_tied_heads(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for layer in self.model.modules():
            if self._tied and isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
