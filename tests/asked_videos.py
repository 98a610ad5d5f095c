"""A tiny CLEVRER data set with questions, slots of its videos, and an ALOE that is quickly trained on them."""

from pathlib import Path

import torch
from clevrer_scenes import write_asked_scenes

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.training.vqa_stage import VQAStage, VQATrainingConfig
from cjepa_agent.vqa.aloe import ALOEConfig
from envs.clevrer.dataset import Dataset

SCENES = [0, 1, 2, 10000, 10001]
TINY = ALOEConfig(layers=2, heads=2, width=32, mlp=64, head=32, dropout=0.1, frames=4, tubelet=1)


def write_asked_videos(folder: Path) -> Path:
    """Three training and two validation scenes with annotations, balanced questions, and slots in two folders.

    ``slots`` holds random ones, the same in all frames of a video; ``intervened`` predictions without each object: 180
    frames that hold 1,000 times the object's id plus the frame's number.
    """
    write_asked_scenes(folder)
    generator = torch.Generator().manual_seed(0)
    videos = (torch.randn(1, 3, 16, generator=generator).expand(128, -1, -1) for _ in SCENES)
    VideoSlots.write(folder / "slots", {"dataset": "tiny"}, SCENES, (128, 3, 16), videos)
    for slot in range(4):
        without = folder / "intervened" / f"without_{slot}"
        videos = (1000 * slot + torch.arange(180.0)[:, None, None].expand(-1, 3, 16) for _ in SCENES)
        VideoSlots.write(without, {"slot": slot, "slots": {"dataset": "tiny"}}, SCENES, (180, 3, 16), videos)
        SlotAutoencoder(EncoderConfig(kind="clevrer_state", n_slots=7)).save(without)
    return folder


def stage(data: Path, config: ALOEConfig = TINY, seed: int = 0) -> VQAStage:
    """A training on the questions about them."""
    videos = VideoSlots(data / "slots")
    return VQAStage(Dataset(data), videos, config, VQATrainingConfig(), seed, {"note": "tiny"})
