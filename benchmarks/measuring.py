"""What benchmarks time and count: seconds, arithmetic, predictions, copies between host and device, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cjepa_agent.latent import Latent

MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
RESET_PEAK = "5"  # what Linux wants written to clear_refs


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of ``work``, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """The highest rate of square matrix products seen on the device, FLOP/s."""
    best = 0.0
    for size in MATRIX_SIZES[device.type]:
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        work = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
        for _ in range(repeats + 1):
            best = max(best, 2 * size**3 / seconds(work, device))
    return best


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (refs := Path("/proc/self/clear_refs")).exists():
        refs.write_text(RESET_PEAK)


def peak_bytes(device: torch.device) -> int | None:
    """Most memory in use since ``reset_peak``, bytes: of tensors on a GPU, else of the process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    values = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(values["VmHWM"].split()[0]) * 1024


class Transfers(TorchDispatchMode):
    """Counts copies between devices, and values that the host reads.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        read = func is torch.ops.aten._local_scalar_dense.default and devices != {"cpu"}
        self.count += read or ("copy" in func.name() and len(devices) > 1)
        return result


class Predictions(AbstractContextManager["Predictions"]):
    """Counts predictions of a network: frames of one candidate each, three for one whose gradient is asked for.

    Args:
        predictor: a ``MaskedPredictor``; it must not be compiled.

    Attributes:
        count: so far.
    """

    def __init__(self, predictor: nn.Module) -> None:
        self.count, self._predictor = 0, predictor

    def __enter__(self) -> Predictions:
        self._hook = self._predictor.register_forward_pre_hook(self._add)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hook.remove()

    def _add(self, module: nn.Module, args: tuple[Latent, ...]) -> None:
        # A backward pass takes about twice the time of a forward pass.
        self.count += len(args[0].proprio) * (3 if torch.is_grad_enabled() else 1)


@dataclass(frozen=True)
class Counts:
    """What some work takes; counts add up and scale.

    Attributes:
        predictions: frames that the world model predicts, one candidate each.
        flops: arithmetic of matrix products and attention.
        transfers: copies between devices, and values that the host reads.
    """

    predictions: float
    flops: float
    transfers: float

    @classmethod
    def of(cls, work: Callable[[], object], predictor: nn.Module) -> Counts:
        """Do the work and count."""
        with Predictions(predictor) as predictions, FlopCounterMode(display=False) as flops, Transfers() as transfers:
            work()
        return cls(predictions.count, flops.get_total_flops(), transfers.count)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.predictions + other.predictions, self.flops + other.flops, self.transfers + other.transfers)

    def __mul__(self, factor: float) -> Counts:
        return Counts(self.predictions * factor, self.flops * factor, self.transfers * factor)
