"""The training loop: Lightning Fabric for devices, precision and processes around plain PyTorch."""

from __future__ import annotations

import csv
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cjepa_agent.files import as_json, read_json, write_json
from cjepa_agent.provenance import provenance, without_folders
from envs.files import atomic

# Settings that a resumed run may change: where it writes, for how long it trains, what it logs and on what it runs.
RESUMABLE = {"out", "trainer.steps", "trainer.accelerator", "trainer.precision"}
RESUMABLE |= {"trainer.log_every", "trainer.validate_every", "trainer.save_every"}
RECORD = "trained.json"  # of a finished run: on what it ended, in which precision
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # weights stay in float32, as checkpoints hold them
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # capabilities of processors, the last of ARM's


@dataclass(frozen=True)
class TrainerConfig:
    """How to optimise.

    Attributes:
        steps: optimiser steps in all.
        batch: samples per step, over all processes.
        optimizer: ``adamw``, or ``muon`` for the stage's hidden matrices with AdamW for all other parameters (Muon:
            https://kellerjordan.github.io/posts/muon; needs PyTorch 2.9).
        lr: peak learning rate; Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982).
        warmup: steps over which the rate grows linearly to its peak.
        decay: last share of the steps over which it falls to ``floor``. In between it is constant, so that a run can
            be resumed from before the decay with more ``steps``.
        shape: of the decay, ``linear`` or half a ``cosine``.
        floor: what the rate rises from and falls to, as a share of the peak.
        weight_decay: decoupled.
        clip: largest gradient norm, per optimiser; 0 for no limit.
        ema: decay of the exponential moving average of the weights that is validated and exported, see
            ``moving_average``; 0 for none, since a rate that falls to 0 smooths the weights without their lag.
        precision: Fabric precision, ``32-true``, ``bf16-mixed`` or ``16-mixed``; ``auto`` for ``bf16-mixed`` where
            the device has arithmetic in bfloat16, which a processor without it emulates ten times slower than
            ``32-true``, and ``32-true`` elsewhere.
        accelerator: Fabric accelerator, ``auto``, ``cpu`` or ``cuda``.
        seed: of weights, batches and masks.
        log_every: steps between log rows.
        validate_every: steps between validations.
        save_every: steps between checkpoints.
    """

    steps: int = 34000
    batch: int = 128
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = 2e-3
    warmup: int = 500
    decay: float = 0.35
    shape: Literal["linear", "cosine"] = "linear"
    floor: float = 0.0
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "auto"
    accelerator: str = "auto"
    seed: int = 0
    log_every: int = 100
    validate_every: int = 2000
    save_every: int = 1000

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.log_every, self.validate_every, self.save_every) < 1:
            raise ValueError(f"trainer steps, batch and intervals must be positive, got {self}")
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"trainer.decay is a share in [0, 1], got {self.decay}")
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"trainer.shape must be linear or cosine, got {self.shape!r}")
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"trainer.floor is a share in [0, 1), got {self.floor}")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"trainer.ema must be in [0, 1), got {self.ema}")
        if self.lr <= 0 or self.clip < 0:
            raise ValueError(f"trainer.lr must be positive and clip 0 or more, got {self.lr} and {self.clip}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"trainer.optimizer must be adamw or muon, got {self.optimizer!r}")
        if self.optimizer == "muon" and self.precision == "16-mixed":
            # The scale changes with the step of the first of two optimisers, before the other's gradients are unscaled.
            raise ValueError(
                "trainer.optimizer=muon cannot train in 16-mixed; set trainer.optimizer=adamw or precision=auto"
            )

    def resolved(self) -> TrainerConfig:
        """The same with what ``precision=auto`` means on this machine."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16-mixed" if has_bfloat16(self.accelerator) else "32-true")


def moving_average(decay: float) -> Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]:
    """How an average of weights takes in those of the next step, for ``AveragedModel``.

    After n steps the decay is min(``decay``, (1 + n) / (10 + n)), as of TensorFlow's ``ExponentialMovingAverage``, so
    that no average reaches back over much more than a tenth of its training. A constant one makes short trainings
    export little but what they started from.
    """

    def take_in(averaged: PARAM_LIST, current: PARAM_LIST, steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)

    return take_in


def has_bfloat16(accelerator: str) -> bool:
    """Whether the device that Fabric takes for ``accelerator`` computes in bfloat16 itself."""
    if accelerator != "cpu" and torch.cuda.is_available():
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    if not hasattr(torch.cpu, "get_capabilities"):  # older releases of PyTorch do not tell
        return False
    return any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16)


class Stage(Protocol):
    """What one training stage brings to the loop."""

    @property
    def model(self) -> nn.Module:
        """What is trained: its parameters that require gradients."""

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """The trained weight matrices between hidden layers, for Muon; neither embeddings nor heads."""

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of one step, ``total`` among them.

        All ``batch`` samples are drawn from ``generator``, then cut to ``rows``, so that any number of processes
        sees the same data.
        """

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures on validation episodes."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write what the next stage or the user loads."""


def make_optimizers(stage: Stage, config: TrainerConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a stage; together they have every trained parameter once."""
    trained = [p for p in stage.model.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)]
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"trainer.optimizer=muon needs PyTorch 2.9 or newer, this is {torch.__version__}; use adamw")
    matrices = stage.hidden_matrices
    if not matrices:
        raise ValueError("this stage has no hidden matrices for trainer.optimizer=muon; use adamw")
    chosen = {id(matrix) for matrix in matrices}
    others = [p for p in trained if id(p) not in chosen]
    muon = torch.optim.Muon
    if not has_bfloat16(config.accelerator):
        from cjepa_agent.training.muon import Float32Muon  # PyTorch before 2.9 does not have what it derives from

        muon = Float32Muon
    return [
        muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.lr, weight_decay=config.weight_decay),
    ]


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Factor on the peak rate: linear warm-up, constant, decay."""
    rising = (step + 1) / max(1, config.warmup)
    falling = min(1.0, (config.steps - step) / max(1.0, config.decay * config.steps))
    if config.shape == "cosine":
        falling = (1 - math.cos(math.pi * falling)) / 2
    return config.floor + (1 - config.floor) * min(1.0, rising, falling)


class Run:
    """One training run in a folder: state, logs, checkpoints.

    Args:
        stage: what is trained.
        config: how.
        out: the folder; a run there is resumed.
        settings: all that the run depends on, kept in the folder and compared on resumption.

    Attributes:
        step: optimiser steps done.
        seconds: wall-clock time that the steps of the folder's checkpoint took, validation included, also in earlier
            processes.

    Raises:
        ValueError: the run in the folder is damaged or had other settings, or the batch is no multiple of the
            processes.
    """

    def __init__(
        self, stage: Stage, config: TrainerConfig, out: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.stage, self.config, self.out = stage, config, out
        self.settings = as_json(settings or {})
        self.fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)  # type: ignore[arg-type]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Started by torchrun: one device per process, gradients averaged.
            self.fabric = Fabric(
                accelerator=config.accelerator,
                devices=int(os.environ["LOCAL_WORLD_SIZE"]),
                num_nodes=int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"]),
                strategy="ddp",
                precision=config.precision,  # type: ignore[arg-type]
            )
        self.fabric.launch()
        if config.batch % self.fabric.world_size:
            raise ValueError(f"trainer.batch {config.batch} is not a multiple of {self.fabric.world_size} processes")
        share = config.batch // self.fabric.world_size
        self._rows = slice(self.fabric.global_rank * share, (self.fabric.global_rank + 1) * share)
        self.model, *self.optimizers = self.fabric.setup(stage.model, *make_optimizers(stage, config))
        self.average = AveragedModel(stage.model, multi_avg_fn=moving_average(config.ema)) if config.ema else None
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds, self._counted = 0, 0.0, time.perf_counter()
        self.checkpoint = out / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._load()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.stage.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict() if self.average else {},
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.fabric.device) if self.fabric.device.type == "cuda" else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
        }

    def _load(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.checkpoint} cannot be resumed from ({error}); delete it to start again") from error
        # Older files have none, or with folders in them.
        before, now = dict(_flat(without_folders(state.get("settings", {})))), dict(_flat(self.settings))
        changed = [f"{name}={before[name]}" for name in sorted(before.keys() & now.keys() - RESUMABLE)
                   if before[name] != now[name]]  # fmt: skip
        if changed:
            raise ValueError(
                f"{self.out} holds a training with {', '.join(changed)}; give the same to go on with it, "
                "or another out="
            )
        if state["step"] > self.config.steps:
            raise ValueError(
                f"{self.out} has done {state['step']} steps, more than trainer.steps={self.config.steps}; give as many "
                "or more, or another out="
            )
        self.stage.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if (cuda_rng := state.get("cuda_rng")) is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(cuda_rng, self.fabric.device)
        if scale := state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(scale)
        self.step, self.seconds = int(state["step"]), float(state.get("seconds", 0.0))  # older files do not have it

    def _save(self) -> None:
        now = time.perf_counter()
        self.seconds, self._counted = self.seconds + now - self._counted, now
        if self.fabric.is_global_zero:
            with atomic(self.checkpoint) as temporary:
                torch.save(self._state(), temporary)

    def evaluated(self) -> nn.Module:
        """The weights to validate and export: the average if there is one."""
        return self.average.module if self.average else self.stage.model

    def fit(self) -> None:
        """Train from where the folder's checkpoint stands to the last step, then export, unless that has been done."""
        if self.step < self.config.steps or not (self.out / RECORD).is_file():
            self._fit()
        if torch.distributed.is_initialized():
            # A process that ends while another still listens to it makes that one abort. The barrier is kept for as
            # long as the model, whose end waits for the group's threads: one of them would otherwise free the barrier,
            # for which it needs the interpreter's lock, which the waiting thread holds.
            self._ended = torch.distributed.barrier(async_op=True)
            self._ended.wait()
            torch.distributed.destroy_process_group()

    @property
    def record(self) -> dict[str, Any]:
        """Machine, versions, commit and precision that a finished run ended with.

        Raises:
            FileNotFoundError: it has not ended.
        """
        found: dict[str, Any] = read_json(self.out / RECORD)
        return found

    def _fit(self) -> None:
        config, fabric = self.config, self.fabric
        self.out.mkdir(parents=True, exist_ok=True)
        if fabric.is_global_zero:
            (self.out / RECORD).unlink(missing_ok=True)  # of a shorter run, which this one makes longer
        sums: dict[str, list[Tensor]] = defaultdict(list)
        bar = tqdm(
            total=config.steps, initial=self.step, disable=not fabric.is_global_zero, mininterval=2.0, unit="step"
        )
        log = Log(self.out, self.step) if fabric.is_global_zero else None
        self._counted = time.perf_counter()
        while self.step < config.steps:
            terms = self.advance(self.step)
            self.step += 1
            bar.update()
            for name, value in terms.items():
                sums[name].append(value)
            if self.step % config.log_every == 0:
                means = {name: self._mean(torch.stack(values).mean()) for name, values in sums.items()}
                sums.clear()
                bar.set_postfix({"loss": f"{means['total']:.4f}"})
                if log:
                    log.write("train", self.step, means)
            self._milestones(log)
        bar.close()
        if fabric.is_global_zero:
            self.stage.export(self.evaluated().eval(), self.out)
            write_json(self.out / RECORD, {"precision": self.precision, **provenance()})

    @property
    def precision(self) -> str:
        """What Fabric computes in, which on a CPU is ``bf16-mixed`` where ``16-mixed`` is asked for."""
        return str(self.fabric.strategy.precision.precision)

    def advance(self, step: int) -> dict[str, Tensor]:
        """Optimise as in a step of the training; its losses."""
        config, fabric = self.config, self.fabric
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * learning_rate(step, config)
        self.model.train()
        terms = self.stage.loss(self.model, step, config.batch, self._rows, self.generator)
        fabric.backward(terms["total"])
        for optimizer in self.optimizers:
            # In 16-mixed the scaler finds its scale by overflowing; it then leaves out the step.
            finite = self.precision != "16-mixed"
            fabric.clip_gradients(self.model, optimizer, max_norm=config.clip or math.inf, error_if_nonfinite=finite)
            optimizer.step()
        if self.average:
            self.average.update_parameters(self.stage.model)
        return {name: value.detach() for name, value in terms.items()}

    def _mean(self, value: Tensor) -> float:
        """Mean over processes."""
        mean = self.fabric.all_reduce(value, reduce_op="mean")
        return float(cast(Tensor, mean))

    def _milestones(self, log: Log | None) -> None:
        last = self.step == self.config.steps
        if (last or self.step % self.config.validate_every == 0) and log:
            log.write("validation", self.step, self.stage.validate(self.evaluated().eval()))
        if last or self.step % self.config.save_every == 0:
            self._save()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class Log:
    """Rows of (step, name, value) to ``<kind>.csv`` and to TensorBoard.

    Rows after ``step`` that a killed run left behind are dropped on resumption.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.board = SummaryWriter(str(folder), purge_step=step + 1)
        for kind in ("train", "validation"):
            path = folder / f"{kind}.csv"
            if path.is_file():
                with path.open() as file:
                    # The last row may have been cut by what killed the run.
                    lines = (line for line in file if "\0" not in line)
                    whole = [row for row in csv.reader(lines) if len(row) == 3 and row[0].isdecimal()]
                with atomic(path) as temporary, temporary.open("w", newline="") as file:
                    csv.writer(file).writerows(row for row in whole if int(row[0]) <= step)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Append ``values`` at ``step``."""
        with (self.folder / f"{kind}.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([step, name, value])
                self.board.add_scalar(f"{kind}/{name}", value, step)
        self.board.flush()
