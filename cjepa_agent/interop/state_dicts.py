"""State dicts in what was read from PyTorch's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cjepa_agent.interop.pickles import Record


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file.

    Attributes:
        tensors: by name.
        wrapping: what they came in, for messages.
    """

    tensors: dict[str, Tensor]
    wrapping: str


def weights_of(value: Any, path: Path) -> Weights:
    """The state dict in what ``read_pickle(path, objects=True)`` gave: plain, wrapped, or of a pickled module.

    Raises:
        ValueError: it holds something other than named tensors.
    """
    wrapping = "state dict"
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        wrapping = "Lightning checkpoint" if "pytorch-lightning_version" in value else "checkpoint with state_dict"
        value = value["state_dict"]
    elif isinstance(value, Record):
        wrapping = f"pickled module {value.name}"
        try:
            value = dict(_module_tensors(value, "", set()))
        except RecursionError as error:
            raise ValueError(f"{path} holds modules in modules that are nested too deeply") from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} holds no weights; expected a state dict, a checkpoint with one, or a module")
    foreign = [
        str(name) for name, tensor in value.items() if not isinstance(name, str) or not isinstance(tensor, Tensor)
    ]
    if foreign:
        raise ValueError(f"{path} holds a {wrapping} with entries that are no tensors: {foreign[:5]}")
    return Weights(value, wrapping)


def _module_tensors(module: Record, prefix: str, above: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a recorded ``torch.nn.Module``."""
    state = module.state
    if not isinstance(state, dict) or "_modules" not in state or id(module) in above:
        return
    transient = state.get("_non_persistent_buffers_set", set())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state.get(kind, {}).items():
            if isinstance(tensor, Tensor) and name not in transient:
                yield prefix + name, tensor
    for name, child in state["_modules"].items():
        if isinstance(child, Record):
            yield from _module_tensors(child, f"{prefix}{name}.", above | {id(module)})
