"""JSON files, never half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.files import atomic


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; see ``plain`` for what JSON has no type for."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=plain) + "\n")


def plain(value: Any) -> Any:
    """NumPy numbers and arrays as plain ones, paths as their last part: a record must not tell a machine's folders."""
    if isinstance(value, Path):
        return value.name
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: Path) -> Any:
    """Read JSON; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON (truncated or another format): {error}") from error
