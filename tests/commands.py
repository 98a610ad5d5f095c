"""The commands as users run them, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    module: str, *arguments: str, folder: Path | None = None, expect: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in a folder, by this checkout, on one thread and no GPU; None expects any end."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert expect in (None, done.returncode), done.stderr[-2000:]
    return done
