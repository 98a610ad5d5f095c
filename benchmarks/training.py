"""What a training step costs, DINO-WM's published size included: ``python -m benchmarks.training``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measuring import peak_bytes, reset_peak, seconds
from benchmarks.systems import UNMASKED, system
from cjepa_agent.ctt import CTTConfig
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.latent import Latent
from cjepa_agent.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictor import PredictorConfig
from cjepa_agent.provenance import provenance, settings_record
from cjepa_agent.training.predictor_stage import DynamicsLoss, DynamicsTrainingConfig
from cjepa_agent.world_model import EncoderConfig, WorldModel, WorldModelConfig
from configs.command import command
from configs.presets import preset

PROPRIO, ACTION, ACTION_BLOCK = 4, 2, 5  # Push-T's
PAPER_SLOTS, PAPER_PATCHES, PATCH_WIDTH = 4, 196, 384
REFERENCE = "c-jepa-1"


@dataclass(frozen=True)
class TrainingBenchmark:
    """Times forward and backward passes on random latents; what the optimiser does is left out.

    Rows are the systems of ``benchmarks.systems`` at their default size, ``c-jepa-paper`` (C-JEPA's published size on
    4 slots) and ``dino-wm-paper`` (DINO-WM's, on 196 tokens of 384 numbers).

    Attributes:
        systems: at their default size; the first row is ``c-jepa-1`` in any case.
        batch: windows per step.
        patches_batch: likewise, of ``dino-wm-paper``, whose attention needs memory.
        repeats: timed steps, after one that is not.
        device: ``cpu`` or ``cuda``.
        seed: of weights and latents.
        out: folder for the JSON file.

    Raises:
        ValueError: a number is below 1, or a system is unknown.
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
            system(name, PredictorConfig())

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
        patches = replace(
            slots,
            encoder=EncoderConfig(n_slots=PAPER_PATCHES, slot_dim=PATCH_WIDTH),
            predictor=replace(preset(OCDINOWMConfig, "predictor", "oc_dino_wm_paper"), width=PATCH_WIDTH),
        )
        named = {name: replace(slots, predictor=system(name, PredictorConfig()).predictor)
                 for name in (REFERENCE, *self.systems)}  # fmt: skip
        return {
            **{name: (config, self.batch) for name, config in named.items()},
            "c-jepa-paper": (paper, self.batch),
            "dino-wm-paper": (patches, self.patches_batch),
        }


def measure(config: WorldModelConfig, batch: int, repeats: int, device: torch.device, seed: int) -> dict[str, Any]:
    """Seconds per window of a training step, the longest history that the predictor has, one frame predicted."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DynamicsLoss(WorldModel(config), UNMASKED, DynamicsTrainingConfig(), CTTConfig()).to(device)
    generator, frames = torch.Generator().manual_seed(seed), config.predictor.history + 1

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device)

    encoder = config.encoder
    latent = Latent(drawn(frames, encoder.n_slots, encoder.slot_dim), drawn(frames, config.proprio_dim))
    actions = drawn(frames - 1, config.action_dim)
    hidden = torch.zeros(batch, frames - 1, encoder.n_slots, dtype=torch.bool, device=device)

    def step() -> None:
        model((latent, actions), hidden, None, None, None, None)["total"].backward()
        model.zero_grad()

    step()
    reset_peak(device)
    spent = [seconds(step, device) for _ in range(repeats)]
    return {
        "config": asdict(config.predictor),
        "tokens": model.world_model.predictor.frame_tokens,
        "slot_dim": encoder.slot_dim,
        "parameters": sum(weight.numel() for weight in model.world_model.predictor.parameters()),
        "batch": batch,
        "seconds": spent,
        "seconds_per_window": median(spent) / batch,
        "peak_bytes": peak_bytes(device),
    }


def run(config: TrainingBenchmark) -> None:
    """Measure all rows and write and print them."""
    device = torch.device(config.device)
    rows = {name: measure(*row, config.repeats, device, config.seed) for name, row in config.rows().items()}
    path = Path(config.out) / "benchmark_training.json"
    write_json(path, {"config": settings_record(config), "rows": rows, "provenance": provenance()})
    header = ["system", "tokens x width", "parameters", "windows", "ms / window", f"times {REFERENCE}"]
    cells = [
        [
            name,
            f"{row['tokens']} x {row['slot_dim']}",
            f"{row['parameters']:,}",
            str(row["batch"]),
            f"{1000 * row['seconds_per_window']:.2f}",
            f"{row['seconds_per_window'] / rows[REFERENCE]['seconds_per_window']:.1f}",
        ]
        for name, row in rows.items()
    ]
    print(f"{plain_table(header, cells)}\n\nwritten to {path}")


main = command("training", TrainingBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
