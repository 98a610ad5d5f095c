"""Where a result comes from: versions, commit and machine, for files that others should be able to trace."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "cjepa-agent"
PACKAGES = (DISTRIBUTION, "torch", "numpy", "gymnasium", "pymunk", "pygame", "stable-baselines3", "huggingface_hub")


def package_version(name: str = DISTRIBUTION) -> str:
    """Installed version of a distribution, ``"not installed"`` without one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """Commit of the checkout this package lies in, ending in ``-dirty`` with local changes; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        # The package must be tracked: a virtual environment may lie inside some other project's checkout.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def settings_record(config: Any) -> dict[str, Any]:
    """All settings of a dataclass as they are written beside results; absolute paths are cut to their last part."""
    return {name: without_folders(value) for name, value in asdict(config).items()}


def changed_settings(config: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not its defaults, and its ``kind``: what a later setting leaves as it is."""
    changed = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        if setting.name == "kind" or value != default:
            changed[setting.name] = changed_settings(value) if is_dataclass(value) else without_folders(value)
    return changed


def without_folders(value: Any) -> Any:
    """A value of plain types with absolute paths in it cut to their last part."""
    if isinstance(value, dict):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_folders(each) for each in value)
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def provenance() -> dict[str, Any]:
    """Versions, commit and machine (processor, cores, threads), without names of hosts, users or folders."""
    import torch  # takes seconds, which those who only want a version need not wait

    versions = {name: package_version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": git_commit(),
        "machine": {
            "system": platform.system(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
