"""Published weights from disk: read whole and checked against the model before any of them is used."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.embedded.network import Layout

FILE = "model.safetensors"


def read_weights(folder: Path, layout: Layout, device: str = "cpu") -> dict[str, Tensor]:
    """Every tensor of `layout` from `folder`, on `device`, tied names included; raises FailureError at `publish`.

    Any type of number is taken. Tied names may be in the file or not: the tensor they share is what counts.
    """
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = set(file.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _check(found, layout, path)
            tensors = {name: file.get_tensor(name) for name in names - set(layout.tied)}
    except FileNotFoundError:
        raise _failed(FailureKind.REJECTED, f"there are no weights at {path}: expected a {FILE}") from None
    except (OSError, SafetensorError) as error:
        raise _failed(FailureKind.INVALID, f"{path} cannot be read: {error}") from error
    return tensors | {name: tensors[owner] for name, owner in layout.tied.items()}


def _check(found: dict[str, tuple[int, ...]], layout: Layout, path: Path) -> None:
    missing = sorted(set(layout.shapes) - set(layout.tied) - set(found))
    unexpected = sorted(set(found) - set(layout.shapes))
    misshapen = [
        f"{name} is {list(shape)}, not {list(layout.shapes[name])}"
        for name, shape in sorted(found.items())
        if name in layout.shapes and shape != layout.shapes[name]
    ]
    problems = [
        f"{len(names)} {what}, such as {'; '.join(names[:2])}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise _failed(
            FailureKind.REJECTED,
            f"the weights in {path} are not this model's ({', '.join(problems)}); the old ones stay",
        )


def _failed(kind: FailureKind, message: str) -> FailureError:
    return FailureError.of(kind, Stage.PUBLISH, message, retryable=False)
