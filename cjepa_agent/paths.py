"""Where generated data and running checkpoints live."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$CJEPA_CACHE`` if set, else ``~/.cache/cjepa_agent``."""
    return Path(os.environ.get("CJEPA_CACHE", "~/.cache/cjepa_agent")).expanduser()
