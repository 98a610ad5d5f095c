"""The loop around every stage: what a folder is resumed with, overflows in half precision, averages, dropout."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.precision.amp import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cjepa_agent.training.loop import Run, TrainerConfig, learning_rate, moving_average

CONFIG = TrainerConfig(
    steps=4, batch=2, optimizer="adamw", lr=0.1, warmup=1, decay=0.0, weight_decay=0.0, ema=0.0, precision="32-true",
    accelerator="cpu", save_every=2,
)  # fmt: skip


class Line:
    """A stage that makes one number smaller; in the first ``huge`` steps its gradient overflows once it is scaled."""

    hidden_matrices: list[nn.Parameter] = []

    def __init__(self, huge: int = 0) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        self.huge, self.weights = huge, []
        nn.init.ones_(self.model.weight)

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        self.weights.append(self.model.weight.item())
        return {"total": model(torch.ones(1, 1)).float().sum() * (1e36 if step < self.huge else 1.0)}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"weight": self.model.weight.item()}

    def export(self, model: nn.Module, folder: Path) -> None:
        (folder / "exported").write_text(str(self.model.weight.item()))


def settings(config: TrainerConfig, **others: object) -> dict[str, object]:
    return {"trainer": asdict(config), "mask": {"count": 1}, **others}


def test_a_folder_is_resumed_with_its_own_settings_alone(tmp_path: Path) -> None:
    Run(Line(), CONFIG, tmp_path, settings(CONFIG)).fit()
    exported = (tmp_path / "exported").read_text()
    other = replace(CONFIG, seed=7)
    with pytest.raises(ValueError, match=r"holds a training with mask\.count=1, trainer\.seed=0; give the same"):
        Run(Line(), other, tmp_path, settings(other, mask={"count": 4}))
    assert (tmp_path / "exported").read_text() == exported
    longer = replace(CONFIG, steps=6, log_every=1, validate_every=1, save_every=1)
    resumed = Run(Line(), longer, tmp_path, settings(longer, out="elsewhere"))
    assert resumed.step == 4
    resumed.fit()
    assert float((tmp_path / "exported").read_text()) < float(exported)


def test_a_folder_that_has_done_more_steps_is_refused(tmp_path: Path) -> None:
    Run(Line(), CONFIG, tmp_path).fit()
    with pytest.raises(ValueError, match=r"has done 4 steps, more than trainer\.steps=2; give as many"):
        Run(Line(), replace(CONFIG, steps=2), tmp_path)


def test_the_average_has_the_buffers_of_the_model(tmp_path: Path) -> None:
    stage = Line()
    stage.model.register_buffer("index", torch.arange(60), persistent=False)
    run = Run(stage, replace(CONFIG, ema=0.9995), tmp_path)
    run.fit()
    assert torch.equal(run.evaluated().index, torch.arange(60))


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run = Run(Line(), CONFIG, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trained\.json"):
        _ = run.record
    run.fit()
    assert run.record["precision"] == "32-true" and run.record["machine"]["cores"]
    (tmp_path / "exported").write_text("by whoever trained it")
    again = Run(Line(), replace(CONFIG, precision="bf16-mixed"), tmp_path)
    again.fit()
    assert (tmp_path / "exported").read_text() == "by whoever trained it" and again.record == run.record
    Run(Line(), replace(CONFIG, steps=5), tmp_path).fit()
    assert (tmp_path / "exported").read_text() != "by whoever trained it"


def test_a_longer_run_that_fails_while_it_exports_exports_again(tmp_path: Path) -> None:
    class Failing(Line):
        def export(self, model: nn.Module, folder: Path) -> None:
            raise OSError("no space left")

    Run(Line(), CONFIG, tmp_path).fit()
    longer = replace(CONFIG, steps=6)
    with pytest.raises(OSError, match="no space"):
        Run(Failing(), longer, tmp_path).fit()
    short = (tmp_path / "exported").read_text()
    Run(Line(), longer, tmp_path).fit()
    assert (tmp_path / "exported").read_text() != short


def test_a_log_that_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    Run(Line(), replace(CONFIG, log_every=1), tmp_path).fit()
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes().rstrip() + b"\r\n5\r\n\0\0")
    Run(Line(), replace(CONFIG, log_every=1, steps=6), tmp_path).fit()
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["1", "2", "3", "4", "5", "6"]


def test_logged_means_are_of_the_steps_that_have_a_term(tmp_path: Path) -> None:
    class Now(Line):
        def loss(self, model: nn.Module, step: int, *rest: Any) -> dict[str, Tensor]:
            terms = super().loss(model, step, *rest)
            return {**terms, "seldom": torch.tensor(3.0)} if step % 2 else terms

    Run(Now(), replace(CONFIG, log_every=2, save_every=1, steps=3), tmp_path).fit()
    time.sleep(1.1)  # TensorBoard orders files by the second in which they begin, then by a number that is no number
    Run(Now(), replace(CONFIG, log_every=2, save_every=1, validate_every=1, steps=6), tmp_path).fit()
    rows = [line.split(",") for line in (tmp_path / "train.csv").read_text().splitlines()]
    assert [(int(step), float(value)) for step, name, value in rows if name == "seldom"] == [(2, 3), (4, 3), (6, 3)]
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in board.Scalars("train/total")] == [2, 4, 6]
    assert [event.step for event in board.Scalars("validation/weight")] == [3, 4, 5, 6]


def test_weights_other_than_float32_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision must be one of .*, got 'bf16-true'"):
        replace(CONFIG, precision="bf16-true")


def test_muon_is_refused_in_half_precision() -> None:
    with pytest.raises(ValueError, match="muon cannot train in 16-mixed"):
        replace(CONFIG, optimizer="muon", precision="16-mixed")


def test_a_running_checkpoint_without_settings_is_resumed(tmp_path: Path) -> None:
    Run(Line(), CONFIG, tmp_path).fit()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name in ("settings", "precision"):
        del state[name]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert Run(Line(), CONFIG, tmp_path, settings(CONFIG)).step == 4


def half(stage: Line, config: TrainerConfig, out: Path) -> Run:
    """A run with the scaler that ``16-mixed`` has on a GPU; Fabric itself has none on a CPU."""
    run = Run(stage, config, out)
    run.fabric.strategy._precision = MixedPrecision("16-mixed", "cpu")
    if run.checkpoint.is_file():
        run._load()
    return run


def test_half_precision_skips_steps_that_overflow_and_resumes_with_its_scale(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="16-mixed", save_every=1)
    with pytest.warns(UserWarning, match="fp16"):
        whole = half(Line(huge=2), config, tmp_path)
        whole.fit()
        weights = whole.stage.weights
        assert weights[:3] == [1.0, 1.0, 1.0] and weights[3] < 1.0
        resumed = half(Line(), config, tmp_path)
    scale = resumed.fabric.strategy.precision.scaler.get_scale()
    assert scale == whole.fabric.strategy.precision.scaler.get_scale() == 2.0**16 / 4


class Infinite(Line):
    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"total": model(torch.ones(1, 1)).sum() * torch.inf}


def test_other_precisions_stop_at_infinite_gradients(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="non-finite"):
        Run(Infinite(), CONFIG, tmp_path).fit()


def test_half_precision_is_none_on_a_cpu(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="fp16"), pytest.raises(RuntimeError, match="non-finite"):
        Run(Infinite(), replace(CONFIG, precision="16-mixed"), tmp_path).fit()
    with pytest.warns(UserWarning, match="fp16"):
        run = Run(Line(), replace(CONFIG, precision="16-mixed"), tmp_path)
        run.fit()
    assert run.record["precision"] == "bf16-mixed"


def test_auto_precision_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainerConfig().precision == "auto"

    def resolved(accelerator: str = "auto", precision: str = "auto") -> str:
        return TrainerConfig(accelerator=accelerator, precision=precision).resolved().precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, expected in (({"avx2": True, "amx_bf16": False}, "32-true"), ({"avx512_bf16": True}, "bf16-mixed")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert resolved() == resolved("cpu") == expected and resolved(precision="32-true") == "32-true"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolved("cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert resolved() == resolved("cuda") == "bf16-mixed" and resolved("cpu") == "32-true"


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    config = TrainerConfig(steps=100, warmup=10, decay=0.2)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert {learning_rate(step, config) for step in range(9, 81)} == {1.0}
    assert learning_rate(90, config) == pytest.approx(0.5)
    assert learning_rate(100, config) == 0.0


@pytest.mark.parametrize("steps", [10, 100, 3000])
@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_averages_do_not_hold_what_a_training_began_with(steps: int, decay: float) -> None:
    model = nn.Linear(1, 1, bias=False).requires_grad_(False)
    average = AveragedModel(model, multi_avg_fn=moving_average(decay))
    for step in range(steps + 1):  # weights that tell the step
        model.weight.fill_(step)
        average.update_parameters(model)
    behind = steps - float(average.module.weight)
    assert min(decay / (1 - decay), steps / 20) - 1 < behind < min(decay / (1 - decay), steps / 9) + 1
