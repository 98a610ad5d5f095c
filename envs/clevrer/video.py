"""Videos as CLEVRER's: H.264 in MP4, 25 frames per second."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

FPS = 25
QUALITY = 8  # of 10


def encode_video(frames: NDArray[np.uint8]) -> bytes:
    """Frames (T, H, W, 3) as the content of an MP4 file; H and W must be even."""
    encoded: bytes = iio.imwrite(
        "<bytes>",
        frames,
        extension=".mp4",
        plugin="FFMPEG",
        fps=FPS,
        quality=QUALITY,
        macro_block_size=2,
        output_params=["-threads", "1"],  # small frames are not worth more, and other workers have the other cores
    )
    return encoded


def read_video(path: Path) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) of a file; raises ValueError if it cannot be read."""
    try:
        frames: NDArray[np.uint8] = iio.imread(path, plugin="FFMPEG")
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"broken video: {' '.join(str(error).split())[-200:]}") from error
    return frames
