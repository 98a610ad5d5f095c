"""Safetensors files, written whole and read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from envs.files import atomic


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors``; the file appears only when it is complete."""
    with atomic(path) as temporary:
        # save_file would leave it readable by its owner alone, whatever the umask.
        temporary.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of names, types, shapes and values, and of settings of plain types that go with them."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    if settings is None:
        return found.hexdigest()
    return hashlib.sha256((json.dumps(settings, sort_keys=True) + found.hexdigest()).encode()).hexdigest()


def require_device(name: str) -> None:
    """Raise ValueError unless PyTorch knows and finds a device, such as ``cpu`` or ``cuda``."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but PyTorch finds no GPU; use device=cpu")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file; raises FileNotFoundError, or ValueError if it is truncated or foreign."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}; fetch it again") from error


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, which must be exactly ``expected`` in names, shapes and dtypes, and finite."""
    tensors = read_tensors(path)
    check_tensors(path, tensors, expected)
    return tensors


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names, shapes, dtypes are as expected and all values finite."""
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing tensors {missing}")
    if extra := sorted(tensors.keys() - expected.keys()):
        problems.append(f"unexpected tensors {extra}")
    for name in sorted(expected.keys() & tensors.keys()):
        found, wanted = tensors[name], expected[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            problems.append(
                f"{name} is {found.dtype} {tuple(found.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}"
            )
    if problems:
        raise ValueError(f"{path} does not fit its configuration: {'; '.join(problems)}")
    bad = sorted(name for name, value in tensors.items() if not torch.isfinite(value).all())
    if bad:
        raise ValueError(f"{path} holds NaN or infinite values in {bad}; the training that made it diverged")
