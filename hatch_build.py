"""Build hook: what makes ``gym.make("PushT-v0")`` work with no import of ours.

Gymnasium 1.0 and later read no entry points. Each installation, editable ones included, therefore gets a ``.pth``
file, which Python reads at its start, and beside it a copy of ``envs/registration.py``, which says the rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULE = "_cjepa_agent_registration"
# An exec, since lines of .pth files are single statements and a half-removed installation must not print errors.
PTH = (
    f'import sys; exec("try:\\n import {MODULE}\\n'
    f'except ImportError:\\n pass\\nelse:\\n {MODULE}.register_when_imported()")\n'
)


class RegistrationHook(BuildHookInterface):
    """Adds the two files to the root of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Prepare the files in a folder of their own: a file that is force-included in place leaves its package."""
        self.folder = Path(mkdtemp())
        shutil.copy(Path(self.root) / "envs" / "registration.py", self.folder / f"{MODULE}.py")
        (self.folder / "cjepa_agent_envs.pth").write_text(PTH, encoding="utf-8")
        build_data["force_include"].update({str(path): path.name for path in self.folder.iterdir()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the prepared files."""
        shutil.rmtree(self.folder)
