"""What a training step costs, DINO-WM's published size included: ``python -m benchmarks.training``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import dino_wm
from benchmarks.measuring import peak_bytes, reset_peak, seconds
from benchmarks.predictors import UNMASKED, system
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.provenance import provenance, settings_record
from cjepa_agent.tensors import require_device
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.loop import Run, TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsLoss, DynamicsTrainingConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.command import command
from configs.presets import preset

PROPRIO, ACTION, ACTION_BLOCK = 4, 2, 5  # Push-T's
PAPER_SLOTS = 4
REFERENCE = "c-jepa-1"


@dataclass(frozen=True)
class TrainingBenchmark:
    """Times steps of the training loop on random latents, with the trainer's default optimiser and precision.

    A step sees one frame of history or all that the predictor has; trainings mix both (``dynamics.single_frame``).

    Rows are the systems of ``benchmarks.predictors`` at their default size, ``c-jepa-paper`` (C-JEPA's published size
    on 4 slots) and ``dino-wm-paper`` (DINO-WM's, on 196 tokens of 384 numbers).

    Attributes:
        systems: at their default size; the first row is ``c-jepa-1`` in any case.
        batch: windows per step.
        patches_batch: likewise, of ``dino-wm-paper``, whose attention needs memory.
        repeats: timed steps of either kind, in turns, after one of each that is not timed.
        device: ``cpu`` or ``cuda``.
        seed: of weights and latents.
        out: folder for the JSON file.

    Raises:
        ValueError: a number is below 1, or a system is unknown or has more to its loss than a predictor of slots.
    """

    systems: tuple[str, ...] = ("oc-dino-wm", "slotformer", "ocvp")
    batch: int = 64
    patches_batch: int = 2
    repeats: int = 5
    device: str = "cpu"
    seed: int = 0
    out: str = "results"

    def __post_init__(self) -> None:
        if min(self.batch, self.patches_batch, self.repeats) < 1:
            raise ValueError(f"batch, patches_batch and repeats must be at least 1, got {self}")
        for name in self.systems:
            chosen = system(name, PredictorConfig())
            if chosen.patches or chosen.ctt.on or chosen.images:
                raise ValueError(f"systems has {name!r}, which is more than a predictor of slots; this times only that")

    def rows(self) -> dict[str, tuple[WorldModelConfig, int]]:
        """Architecture and batch of each row."""
        slots = WorldModelConfig(
            encoder=EncoderConfig(n_slots=PAPER_SLOTS),
            predictor=PredictorConfig(),
            proprio_dim=PROPRIO,
            env_action_dim=ACTION,
            action_block=ACTION_BLOCK,
        )
        paper = replace(slots, predictor=preset(PredictorConfig, "predictor", "paper"))
        named = {name: replace(slots, predictor=system(name, PredictorConfig()).predictor)
                 for name in (REFERENCE, *self.systems)}  # fmt: skip
        return {
            **{name: (config, self.batch) for name, config in named.items()},
            "c-jepa-paper": (paper, self.batch),
            "dino-wm-paper": (dino_wm(slots), self.patches_batch),
        }


class RandomLatents:
    """A stage that learns from the same random latents in every step.

    Args:
        config: architecture.
        batch: windows.
        frames: of history; one more is predicted.
        device: of the latents.
        seed: of weights and latents.
    """

    def __init__(self, config: WorldModelConfig, batch: int, frames: int, device: torch.device, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = DynamicsLoss(WorldModel(config), UNMASKED, DynamicsTrainingConfig(), CTTConfig())
        self.hidden_matrices = self.model.world_model.predictor.hidden_matrices
        generator, encoder = torch.Generator().manual_seed(seed), config.encoder

        def drawn(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator).to(device)

        self.latent = Latent(drawn(frames + 1, encoder.n_slots, encoder.slot_dim), drawn(frames + 1, PROPRIO))
        self.actions = drawn(frames, config.action_dim)
        self.hidden = torch.zeros(batch, frames, encoder.n_slots, dtype=torch.bool, device=device)

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Of all latents."""
        terms: dict[str, Tensor] = model((self.latent, self.actions), self.hidden, None, None, None, None)
        return terms

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Nothing."""
        return {}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Nothing."""


def measure(config: WorldModelConfig, batch: int, repeats: int, device: torch.device, seed: int) -> dict[str, Any]:
    """Seconds per window of a training step with one frame of history, and with as many as the predictor has."""
    trainer = TrainerConfig(batch=batch, accelerator=device.type, seed=seed).resolved()
    with TemporaryDirectory() as folder:
        stages = {
            name: RandomLatents(config, batch, frames, device, seed)
            for name, frames in (("one_frame", 1), ("whole_history", config.predictor.history))
        }
        runs = {name: Run(stage, trainer, Path(folder)) for name, stage in stages.items()}
    for run in runs.values():
        run.advance(0)
    reset_peak(device)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(1, repeats + 1):
        for name, run in runs.items():
            spent[name].append(seconds(partial(run.advance, step), device))
    predictor = stages["one_frame"].model.world_model.predictor
    return {
        "config": asdict(config.predictor),
        "tokens": predictor.frame_tokens,
        "slot_dim": config.encoder.slot_dim,
        "parameters": sum(weight.numel() for weight in predictor.parameters()),
        "batch": batch,
        "seconds": spent,
        "seconds_per_window": {name: median(times) / batch for name, times in spent.items()},
        "peak_bytes": peak_bytes(device),
    }


def run(config: TrainingBenchmark) -> None:
    """Measure all rows and write and print them."""
    require_device(config.device)
    device = torch.device(config.device)
    rows = {name: measure(*row, config.repeats, device, config.seed) for name, row in config.rows().items()}
    path = Path(config.out) / "benchmark_training.json"
    write_json(path, {"config": settings_record(config), "rows": rows, "provenance": provenance()})
    kinds = ("one_frame", "whole_history")
    header = ["system", "tokens x width", "parameters", "windows"]
    header += [f"ms / window, {kind.replace('_', ' ')}" for kind in kinds] + [f"times {REFERENCE}"] * len(kinds)
    cells = [
        [
            name,
            f"{row['tokens']} x {row['slot_dim']}",
            f"{row['parameters']:,}",
            str(row["batch"]),
            *(f"{1000 * row['seconds_per_window'][kind]:.2f}" for kind in kinds),
            *(f"{row['seconds_per_window'][k] / rows[REFERENCE]['seconds_per_window'][k]:.1f}" for k in kinds),
        ]
        for name, row in rows.items()
    ]
    print(f"{plain_table(header, cells)}\n\nwritten to {path}")


main = command("training", TrainingBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
