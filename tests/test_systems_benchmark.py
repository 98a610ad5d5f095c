"""The benchmark of systems, and the training command that takes each of them by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from commands import run
from tiny_model import SETTINGS

from benchmarks import systems
from benchmarks.causality import CausalityBenchmark
from benchmarks.predictors import ROLLED_WINDOWS, System, system
from benchmarks.report import Report
from benchmarks.systems import SystemsBenchmark
from benchmarks.systems_page import contrasts
from cjepa_agent import intervals
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.patches import PatchConfig
from cjepa_agent.extract import STATE, ExtractConfig, extract
from cjepa_agent.files import write_json
from cjepa_agent.manifest import draw
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.masking import MaskConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.train import make_run
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from configs.presets import preset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks of agent and block, slots of their true states, tokens of noise, and pairs to plan for."""
    folder, rng = tmp_path_factory.mktemp("walks"), np.random.default_rng(0)

    def walk() -> dict[str, np.ndarray]:
        action = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
        state = np.zeros((40, 7))
        state[:, :2] = np.clip(rng.uniform(200, 300, 2) + np.cumsum(5 * action, 0), 60, 450)
        state[:, 2:5] = rng.uniform((180, 180, 0), (330, 330, 6)) + np.cumsum(rng.normal(0, (4, 4, 0.1), (40, 3)), 0)
        noise = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        return {
            "pixels": noise,
            "state": state,
            "action": action,
            "proprio": state[:, [0, 1, 5, 6]].astype(np.float32),
        }

    write_episodes(folder / "data.h5", (walk() for _ in range(60)), {"policy": "walk"})
    extract(ExtractConfig(data=folder / "data.h5", encoder=STATE, out=folder / "slots"))
    SlotAutoencoder(PATCHES).save(folder / "encoder")
    write_json(folder / "encoder/recipe.json", {})
    extract(ExtractConfig(data=folder / "data.h5", encoder=folder / "encoder", out=folder / "patches", stride=5))
    for rule in ("released", "moderate", "strict"):
        draw(EpisodeFile(folder / "data.h5"), rule, "test", 0, 2, 25).write(folder)
    return folder


SMALL = PredictorConfig(depth=2, width=16, heads=2, mlp=16, history=3)
PATCHES = PatchConfig(slot_dim=8, image_size=16, patch=4, depth=1, heads=2, decoder_width=8)
TRAINER = TrainerConfig(
    steps=4, batch=8, precision="32-true", accelerator="cpu", log_every=2, validate_every=2, save_every=2
)


def benchmark(data: Path, **changes: object) -> SystemsBenchmark:
    values = {
        "systems": ("c-jepa-2", "c-jepa-1-concat", "ctt", "oc-dino-wm", "slotformer", "ocvp", "dino-wm"),
        "data": data / "data.h5",
        "slots": data / "slots",
        "patches": data / "patches",
        "predictor": SMALL,
        "dynamics": DynamicsTrainingConfig(rollout_from=0.5, rollout_blocks=3, rollout_batch=4, windows=8),
        "trainer": TRAINER,
        "planner": SETTINGS,
        "episodes": 2,
        "budget": 6,
        "seeds": (0,),
        "manifests": str(data),
    }
    return SystemsBenchmark(**{**values, **changes})


def test_all_systems_are_trained_scored_and_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = benchmark(data, runs=tmp_path / "runs", out=tmp_path, page=tmp_path / "systems.md")
    systems.run(replace(config, systems=config.systems[:1]))
    systems.run(config)
    first = json.loads((tmp_path / "benchmark_systems.json").read_text())
    entries = list(first["systems"].values())
    assert [entry["system"] for entry in entries] == list(config.systems)
    assert [entry["frame_tokens"] for entry in entries] == [6, 4, 6, 4, 4, 4, 16] and entries[0]["mask"]["count"] == 2
    for entry in entries:
        assert [row["rule"] for row in entry["rows"]] == ["released", "moderate", "strict"]
        assert entry["training_seconds"] > 0
        seen = {row["planning_target"].split(" + ")[0].split(",")[0] for row in entry["rows"]}
        assert seen == ({"all slots"} if entry["system"] == "dino-wm" else {"block slot"})
        assert all(row["episodes"] == 2 and row["low"] <= row["success"] <= row["high"] for row in entry["rows"])
        folder = next((tmp_path / "runs").glob(f"{entry['system']}-0-*"))
        checkpoint = Checkpoint.from_pretrained(folder / "checkpoint")
        assert asdict(checkpoint.model.config.predictor) == entry["predictor"]
        assert checkpoint.training["command"]["trainer"]["steps"] == 4
        logged = dict(line.split(",")[1:] for line in (folder / "validation.csv").read_text().splitlines()[-6:])
        assert {name: pytest.approx(float(value)) for name, value in logged.items()} == entry["rollout"]
    page = (tmp_path / "systems.md").read_text()
    assert page.count("\n| ") == 2 + len(entries) and "| slotformer | 0 | " in page and "s / solve" in page
    assert "moving averages" not in page and "(systems_samples.png)" in page
    assert plt.imread(tmp_path / "systems_samples.png").std() > 0
    assert str(tmp_path) not in page + json.dumps(first)
    assert all(entry["training"]["precision"] == "32-true" for entry in entries)
    assert all("torch" in entry["provenance"]["versions"] for entry in entries) and "| 16 x 8 |" in page
    monkeypatch.setattr(systems, "measure", lambda *_: pytest.fail("measured again"))
    systems.run(config)
    assert json.loads((tmp_path / "benchmark_systems.json").read_text()) == first
    assert "written to" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give another out"):
        systems.run(replace(config, episodes=1))
    shutil.copytree(data / "slots", tmp_path / "again" / "slots")
    meta = tmp_path / "again" / "slots" / "slots.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "encoder": "another"}))
    with pytest.raises(ValueError, match="give another out"):
        systems.run(replace(config, slots=meta.parent))


def test_equal_seconds_take_paces_measured_side_by_side(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = benchmark(data, runs=tmp_path / "runs", out=tmp_path, page=tmp_path / "systems.md")
    config = replace(config, systems=("c-jepa-1", "ocvp"), rules=("released",), seconds_of="c-jepa-1")
    measured = systems.pace(config, "ocvp", "c-jepa-1")
    assert len(measured["seconds"]) == len(measured["seconds_of_other"]) == systems.PACE_STEPS
    assert min(measured["seconds"] + measured["seconds_of_other"]) > 0 and not (tmp_path / "runs").exists()
    monkeypatch.setattr(systems, "pace", lambda *_: {"seconds": [1.0, 3.0], "seconds_of_other": [2.0, 4.0]})
    systems.run(config)
    page = (tmp_path / "systems.md").read_text()
    assert "## Equal samples" not in page and page.count("| 88.67 |") == 1
    monkeypatch.setattr(systems, "pace", lambda *_: pytest.fail("measured again"))
    systems.run(config)
    entries = json.loads((tmp_path / "benchmark_systems_seconds.json").read_text())["systems"]
    assert [entry["samples"] for entry in entries.values()] == [4 * TRAINER.batch, 6 * TRAINER.batch]
    systems.run(replace(config, seconds_of=None))
    systems.run(config)
    copied = replace(config, systems=("c-jepa-1",), seconds_of="c-jepa-1", runs=tmp_path / "nowhere")
    (tmp_path / "benchmark_systems_seconds.json").unlink()
    systems.run(copied)
    (own,) = json.loads((tmp_path / "benchmark_systems_seconds.json").read_text())["systems"].values()
    assert own == json.loads((tmp_path / "benchmark_systems.json").read_text())["systems"]["c-jepa-1, seed 0"]
    systems.run(config)
    page = (tmp_path / "systems.md").read_text()
    assert page.index("## Equal samples") < page.index("| c-jepa-1 | 0 |") < page.index("## Equal seconds")
    assert page.count("| 88.67 |") == 2 and page.count("| ocvp | 0 |") == 2


def test_paired_intervals_do_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = np.random.default_rng(1).integers(0, 2, (2, 90))
    whole = intervals.paired_difference(own, other, 3)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 1000)
    assert intervals.paired_difference(own, other, 3) == whole and whole["low"] < whole["mean"] < whole["high"]


def test_paired_intervals_draw_whole_scenes() -> None:
    own, other = np.random.default_rng(1).integers(0, 2, (2, 90))
    scenes = np.random.default_rng(2).permutation(90)
    once = intervals.paired_difference(own, other, 3, scenes.tolist())
    repeated = [np.tile(each, 7) for each in (own, other)]
    seven_times = intervals.paired_difference(*repeated, 3, np.tile(scenes, 7).tolist())
    assert seven_times == pytest.approx({**once, "number": 630})  # the same seven times tells no more
    independent = intervals.paired_difference(*repeated, 3)
    assert independent["high"] - independent["low"] < 0.5 * (once["high"] - once["low"])


def test_intervals_do_not_depend_on_what_else_is_compared() -> None:
    rng = np.random.default_rng(0)

    def entry(name: str) -> dict[str, object]:
        return {"system": name, "training_seed": 0, "solved": {"strict": rng.integers(0, 2, 50).tolist()}}

    plain, one, other = entry("oc-jepa"), entry("ocvp"), entry("slotformer")
    alone, beside = contrasts([plain, other], 0), contrasts([plain, one, other], 0)
    (line,) = [line for line in alone.splitlines() if line.startswith("| slotformer")]
    assert line in beside


def test_contrasts_are_paired_by_pair_and_seed() -> None:
    def entry(name: str, seed: int, strict: list[int]) -> dict[str, object]:
        return {"system": name, "training_seed": seed, "solved": {"released": [1, 1, 1, 1], "strict": strict}}

    plain = [entry("oc-jepa", 0, [0, 0, 1, 1]), entry("oc-jepa", 1, [0, 0, 0, 1])]
    others = [entry("ocvp", 0, [1, 1, 0, 0]), entry("c-jepa-1", 1, [1, 1, 1, 1]), entry("c-jepa-1", 2, [0, 0, 0, 0])]
    text = contrasts([*others, *plain], 0)
    assert "| ocvp | 1 | +0.0 (+0.0 to +0.0) | +0.0 (-100.0 to +100.0) |" in text
    assert "| c-jepa-1 | 1 | +0.0 (+0.0 to +0.0) | +75.0 (" in text  # seed 2 has nothing to be compared with
    assert text.count("\n| ") == 4 and contrasts(others, 0) == ""


def test_processes_share_a_file(tmp_path: Path) -> None:
    def process() -> Report:
        return Report(tmp_path / "report.json", {"data": "walks"}, "systems")

    one, other = process(), process()

    def measured(name: str, seed: int) -> dict[str, object]:
        if name == "slow":
            other.fill(["quick", "late"], [0], lambda n, s: {"system": n, "training_seed": s, "by": "other"})
        return {"system": name, "training_seed": seed, "by": "one"}

    one.fill(["slow", "quick"], [0], measured)
    found = one.trainings(["slow", "quick"])
    assert [(entry["system"], entry["by"]) for entry in found] == [
        ("slow", "one"),
        ("quick", "other"),
        ("late", "other"),
    ]


def test_systems_find_out_first_whether_there_is_what_they_train_on(data: Path, tmp_path: Path) -> None:
    config = benchmark(data, runs=tmp_path / "runs", out=tmp_path, page=tmp_path / "systems.md")
    with pytest.raises(FileNotFoundError, match=r"dino-wm needs patches, but .*nowhere has none; .* encoder=patches"):
        systems.run(replace(config, patches=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"dino-wm needs patches, but .*slots holds others"):
        systems.run(replace(config, patches=data / "slots"))
    with pytest.raises(FileNotFoundError, match=r"dino-wm-reg needs patches, .* encoder=dinov2_reg"):
        systems.run(replace(config, systems=("dino-wm-reg",), register_patches=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"ocvp needs slots, but .*patches holds others"):
        systems.run(replace(config, systems=("ocvp",), slots=data / "patches"))
    for name in ("slotformer-image", "ocvp-image"):
        with pytest.raises(ValueError, match=r"decoder that learned to draw frames; that of encoder\.kind=state"):
            systems.run(replace(config, systems=("oc-jepa", name)))
    assert not (tmp_path / "runs").exists()


def test_other_settings_train_in_another_folder(data: Path) -> None:
    config = benchmark(data)
    assert config.training("ocvp", 0) == config.training("ocvp", 0)
    folders = {
        settings.training(name, seed).out
        for settings in (config, replace(config, dynamics=DynamicsTrainingConfig()))
        for name in ("ocvp", "c-jepa-1", "c-jepa-2")
        for seed in (0, 1)
    }
    assert len(folders) == 12


def test_the_weights_that_are_exported_are_those_validated(data: Path, tmp_path: Path) -> None:
    """With ``trainer.ema`` they are moving averages, not the weights that the optimiser holds."""
    averaging = benchmark(data, trainer=replace(TRAINER, ema=0.9))
    training = make_run(replace(averaging.training("oc-dino-wm", 0), out=tmp_path))
    before = training.stage.validate(training.stage.model.eval())
    averages = training.evaluated().eval()
    for parameter in averages.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert training.stage.validate(training.stage.model) == before
    assert training.stage.validate(averages)["rollout_1"] > before["rollout_1"]


def test_pages_tell_of_averages(tmp_path: Path) -> None:
    plain, averaged = (
        Report(tmp_path / "none.json", {"trainer": asdict(replace(TRAINER, ema=ema))}, "systems") for ema in (0.0, 0.99)
    )
    assert not plain.averages and "`trainer.ema=0.99`" in averaged.averages


def test_systems_have_about_the_same_parameters() -> None:
    built = [system(name, PredictorConfig()).predictor.build(4, 128, 4, 10) for name in SystemsBenchmark().systems]
    built.append(system("dino-wm", PredictorConfig()).predictor.build(64, 64, 4, 10))
    counts = [sum(p.numel() for p in predictor.parameters()) for predictor in built]
    assert max(counts) < 1.1 * min(counts)


def test_ablations_differ_from_c_jepa_in_what_they_are_named_for() -> None:
    full = system("c-jepa-2", SMALL)
    assert full == System(SMALL, MaskConfig(count=2, kind="object"))
    for kind in ("token", "tube", "fixed"):
        assert system(f"c-jepa-2-{kind}", SMALL) == replace(full, mask=MaskConfig(count=2, kind=kind))
    assert system("c-jepa-2-upto", SMALL) == replace(full, mask=MaskConfig(count=2, upto=True))
    weighted = MaskConfig(count=2, history_weight=0.1, future_weight=0.0)
    assert system("c-jepa-2-weighted", SMALL) == replace(full, mask=weighted)
    concatenated = system("c-jepa-2-concat", SMALL)
    assert concatenated == replace(full, predictor=replace(full.predictor, auxiliary="concat"))
    assert [s.predictor.build(4, 128, 4, 10).frame_tokens for s in (full, concatenated)] == [6, 4]


def test_losses_besides_the_predictors_are_systems(data: Path) -> None:
    config, plain = benchmark(data), benchmark(data).training("c-jepa-1", 0)
    assert not plain.ctt.on and plain.dynamics.image_weight == 0
    for name, adjacency in (("ctt", "sum"), ("ctt-published", "mean")):
        chosen = config.training(name, 0)
        assert chosen == replace(plain, out=chosen.out, ctt=chosen.ctt)
        assert chosen.ctt.on and chosen.ctt.adjacency == adjacency
        assert CausalityBenchmark(systems=(name,)).training(name, 0).ctt == chosen.ctt
    for name in ("slotformer", "ocvp"):
        without, chosen = config.training(name, 0), config.training(f"{name}-image", 0)
        assert chosen == replace(without, out=chosen.out, dynamics=replace(without.dynamics, image_weight=4.0))


def test_where_c_jepa_learns_many_frames_at_once_others_learn_from_rollouts() -> None:
    videos = CausalityBenchmark(
        predictor=preset(PredictorConfig, "predictor", "clevrer"),
        dynamics=preset(DynamicsTrainingConfig, "dynamics", "clevrer"),
    )
    rolled = replace(videos.dynamics, rollout_from=0.0, rollout_batch=ROLLED_WINDOWS)
    for name in ("slotformer", "ocvp"):
        assert videos.training(name, 0).dynamics == rolled
    for name in ("oc-jepa", "oc-dino-wm"):
        assert videos.training(name, 0).dynamics == videos.dynamics and videos.dynamics.rollout_from == 1.0
    assert SystemsBenchmark().training("slotformer", 0).dynamics == DynamicsTrainingConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ("lstm",)}, r"'lstm'; expected some of \['c-jepa-<objects hidden>', 'oc-jepa'"),
        ({"systems": ("c-jepa-0",)}, "c-jepa-0"),
        ({"systems": ("c-jepa-1-slot",)}, "c-jepa-1-slot.*-token, -tube, -fixed"),
        ({"systems": ("oc-jepa-concat",)}, "oc-jepa-concat"),
        ({"training_seeds": ()}, "must not be empty"),
        ({"rules": ("loose",)}, "loose"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ],
)
def test_bad_benchmarks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SystemsBenchmark(**change)  # type: ignore[arg-type]


def train(data: Path, out: Path, *arguments: str, expect: int = 0) -> str:
    return run(
        "cjepa_agent.train", f"data={data / 'data.h5'}", f"slots={data / 'slots'}", f"out={out}",
        "trainer.steps=2", "trainer.batch=4", "dynamics.windows=8", "dynamics.rollout_from=0", *arguments,
        expect=expect,
    ).stderr  # fmt: skip


def test_the_training_command_takes_every_system_by_name(data: Path, tmp_path: Path) -> None:
    """Muon, mixed precision and moving averages are the command's defaults."""
    train(data, tmp_path, "predictor=slotformer_paper", "predictor.width=32", "predictor.mlp=32")
    expected = replace(preset(SlotFormerConfig, "predictor", "slotformer_paper"), width=32, mlp=32)
    assert Checkpoint.from_pretrained(tmp_path / "checkpoint").model.config.predictor == expected
    assert "auxiliary" in train(data, tmp_path / "refused", "predictor=ocvp", "predictor.auxiliary=tokens", expect=1)
