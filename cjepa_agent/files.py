"""Files and folders, never half written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.files import atomic


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which becomes ``path`` when the block ends without an error.

    Raises:
        FileExistsError: there is something at ``path`` already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another place or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; see ``plain`` for what JSON has no type for."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=plain) + "\n")


def plain(value: Any) -> Any:
    """NumPy numbers and arrays as plain ones, paths as their last part: a record must not tell a machine's folders."""
    if isinstance(value, Path):
        return value.name
    return value.tolist() if hasattr(value, "tolist") else str(value)


def as_json(value: Any) -> Any:
    """What ``write_json`` and then ``read_json`` make of a value."""
    return json.loads(json.dumps(value, default=plain))


def load_array(path: Path) -> NDArray[Any]:
    """An array on disk, memory-mapped; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is truncated or no array; delete its folder and make it again") from error
    return array


def read_json(path: Path) -> Any:
    """Read JSON; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON (truncated or another format): {error}") from error
