"""The on-screen window of ``render_mode="human"``."""

from __future__ import annotations

import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame
from numpy.typing import NDArray


class Window:
    """Shows frames at a fixed rate.

    Args:
        width, height: px.
        fps: frames per second at which ``show`` returns.
        title: what the window's frame says.
    """

    def __init__(self, width: int, height: int, fps: int, title: str) -> None:
        pygame.display.init()
        self.fps = fps
        self.surface = pygame.display.set_mode((width, height))
        self.clock = pygame.time.Clock()
        pygame.display.set_caption(title)

    def show(self, frame: NDArray) -> None:
        """Show an RGB frame (height, width, 3) uint8 and wait until the next one is due."""
        self.surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.update()
        self.clock.tick(self.fps)

    def close(self) -> None:
        """Close the window."""
        pygame.display.quit()
