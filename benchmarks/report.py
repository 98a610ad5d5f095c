"""A JSON file of measurements that a killed benchmark resumes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cjepa_agent.files import plain, read_json, write_json
from cjepa_agent.provenance import provenance
from cjepa_agent.train import TrainConfig


class Report:
    """Measurements by name, all of one configuration; the file is written after each.

    Args:
        path: the JSON file; what it holds is kept.
        config: settings that the measurements depend on.
        key: what the measurements are called in the file.

    Attributes:
        entries: measurements so far, as JSON gives them back.

    Raises:
        ValueError: the file holds measurements of another configuration.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], key: str) -> None:
        self.path, self._key = path, key
        self._config = json.loads(json.dumps(config, default=plain))
        found = read_json(path) if path.is_file() else {"config": self._config, key: {}}
        if found.get("config") != self._config:
            raise ValueError(
                f"{path} holds results of {found.get('config')}, these are {self._config}; "
                f"give another out, or remove it"
            )
        self.entries: dict[str, Any] = found[key]

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add or replace a measurement and write the file."""
        self.entries[name] = json.loads(json.dumps(entry, default=plain))
        write_json(self.path, {"config": self._config, self._key: self.entries, "provenance": provenance()})


def in_own_folder(settings: TrainConfig, name: str) -> TrainConfig:
    """A training whose folder, within ``settings.out``, has a name that only these settings have."""
    digest = hashlib.sha256(json.dumps(asdict(settings), default=str).encode()).hexdigest()[:12]
    return replace(settings, out=settings.out / f"{name}-{digest}")
