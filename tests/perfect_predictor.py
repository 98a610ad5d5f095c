"""A predictor of CLEVRER videos that is always right: true courses take the place of its predictions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.clevrer_state import CLEVRERStateEncoder, scene_states
from cjepa_agent.evaluation import findings
from cjepa_agent.reading.slot_reader import SlotReader
from cjepa_agent.video_prediction import Downstream
from cjepa_agent.world_model import WorldModel
from envs.clevrer.dataset import Dataset
from envs.clevrer.physics import Trajectory


def true_slots(trajectory: Trajectory, frames: int = 128) -> Tensor:
    return CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, frames)))


def perfect_findings(
    monkeypatch: pytest.MonkeyPatch,
    model: WorldModel,
    data: Dataset,
    source: VideoSlots,
    encode: Callable[[int, Tensor], Tensor],
    object_of: Callable[[int, int], int],
) -> findings.Findings:
    """What is found of the validation scenes.

    Args:
        monkeypatch: puts true courses in place of predictions.
        model: tells what its encoder is.
        data: tells the true courses.
        source: observed slots.
        encode: of a scene, its slots (T, 7, 128) in ``source`` from its true slots.
        object_of: of a scene and a slot there, the object in it.
    """
    by_slots = {source.read(scene).numpy().tobytes(): scene for scene in source.scenes}

    def resimulate(
        model: WorldModel,
        given: Tensor,
        frames: int,
        removed: int | None = None,
        how: str = "drop",
        reader: SlotReader | None = None,
    ) -> tuple[Tensor, Tensor]:
        courses = []
        for video in given:
            scene = by_slots[video.numpy().tobytes()]
            counterfactuals = data.counterfactuals(scene)
            assert counterfactuals is not None
            factual = removed is None
            course = data.trajectory(scene) if factual else counterfactuals.without[object_of(scene, int(removed or 0))]
            courses.append(encode(scene, true_slots(course, frames)))
        return torch.stack(courses), torch.ones(len(given), frames, 7, dtype=torch.bool)

    def changed(
        model: WorldModel, given: Tensor, *arguments: object, reader: SlotReader, every: int, expected: Tensor
    ) -> Downstream:
        return Downstream(*resimulate(model, given, *arguments), torch.zeros(len(given), 7))  # type: ignore[arg-type]

    monkeypatch.setattr(findings, "resimulated", resimulate)
    monkeypatch.setattr(findings, "downstream", changed)
    monkeypatch.setattr(findings, "continued", lambda *arguments: resimulate(*arguments)[0])
    train, held_out = ([s for s in source.scenes if 10_000 * k <= s < 10_000 + 5_000 * k] for k in (0, 1))
    readouts = findings.fit_readouts(model, source, data, train, 0)
    return findings.measure(model, source, data, held_out, readouts, "drop")
