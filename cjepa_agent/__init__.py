"""C-JEPA: an object-centric world model, its planning agent and their environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import envs  # noqa: F401  (registers the environments with Gymnasium)

if TYPE_CHECKING:
    from cjepa_agent.agent import CJEPAAgent

__all__ = ["CJEPAAgent"]


def __getattr__(name: str) -> Any:
    # Lazy: importing the package for one of its parts need not load the agent and PyTorch.
    if name == "CJEPAAgent":
        from cjepa_agent.agent import CJEPAAgent

        return CJEPAAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
