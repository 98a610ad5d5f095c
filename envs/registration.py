"""Gymnasium registration, with the standard library alone.

Gymnasium 1.0 dropped the plug-in entry points that let ``gym.make`` find environments nobody has imported. An
installed distribution therefore also carries a copy of this module with a one-line ``.pth`` file that calls
``register_when_imported`` at interpreter start: the cost is one string comparison per import until Gymnasium is
imported, and nothing else is loaded. The copy imports nothing of ours, because ``envs`` is a common name and a
project with its own ``envs`` folder must keep it.
"""

from __future__ import annotations

import sys

# typing's own flag would load typing, which takes longer than the rest of an interpreter start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# An editable installation holds a copy of this list: install again after adding to it.
SPECS: tuple[dict[str, Any], ...] = (
    {"id": "PushT-v0", "entry_point": "envs.pusht.env:PushTEnv", "max_episode_steps": 300},
    {"id": "CLEVRER-v0", "entry_point": "envs.clevrer.env:CLEVREREnv"},  # truncates by itself, at its last frame
)
TRIGGER = "gymnasium.envs"


def register_envs() -> None:
    """Register our environments with Gymnasium; ids that are already there stay as they are."""
    from gymnasium.envs.registration import register, registry

    for spec in SPECS:
        if spec["id"] not in registry:
            register(**spec)


def register_when_imported() -> None:
    """Register now if Gymnasium is loaded, else as soon as somebody imports it; safe to call repeatedly."""
    if TRIGGER in sys.modules:
        register_envs()
    elif not any(type(finder).__name__ == GymnasiumFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, GymnasiumFinder())


class GymnasiumFinder:
    """Import hook that registers our environments right after ``gymnasium.envs`` has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of ``gymnasium.envs`` with registration added to its execution; None for all other modules."""
        if fullname != TRIGGER:
            return None
        import warnings
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            # The loader itself is kept, since importlib.resources and inspect look at its type.
            del loader.exec_module
            execute(module)
            try:
                register_envs()
            except Exception as error:  # whatever goes wrong here, importing gymnasium must succeed
                warnings.warn(f"cjepa-agent could not register its environments: {error!r}", stacklevel=2)

        loader.exec_module = execute_and_register
        return spec
