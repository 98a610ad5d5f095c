"""Pictures: what sizes they can have, and the on-screen window of ``render_mode="human"``."""

from __future__ import annotations

import os
import weakref
from typing import ClassVar

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from numpy.typing import NDArray


def check_picture(**sizes: int) -> None:
    """Raise ValueError unless all are whole numbers of pixels, 1 or more."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of px, 1 or more, got {size!r}")


class Window:
    """Shows frames at a fixed rate.

    pygame has one window. Several of these take turns in it, and it stays open until the last of them is closed.

    Args:
        width, height: px.
        fps: frames per second at which ``show`` returns.
        title: what the window's frame says.
    """

    _open: ClassVar[int] = 0  # that are neither closed nor forgotten

    def __init__(self, width: int, height: int, fps: int, title: str) -> None:
        self.size, self.fps, self.title = (width, height), fps, title
        self.clock = pygame.time.Clock()
        Window._open += 1
        self._release = weakref.finalize(self, _close_one)

    def show(self, frame: NDArray) -> None:
        """Show an RGB frame (height, width, 3) uint8 and wait until the next one is due."""
        pygame.display.init()
        surface = pygame.display.get_surface()
        if surface is None or (surface.get_size(), pygame.display.get_caption()[0]) != (self.size, self.title):
            surface = pygame.display.set_mode(self.size)
            pygame.display.set_caption(self.title)
        surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.update()
        self.clock.tick(self.fps)

    def close(self) -> None:
        """Close the window; safe to call repeatedly."""
        self._release()


def _close_one() -> None:
    Window._open -= 1
    if Window._open == 0:
        pygame.display.quit()
