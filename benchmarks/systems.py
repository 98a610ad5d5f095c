"""C-JEPA beside other predictors of slots, trained and scored alike: ``python -m benchmarks.systems``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from benchmarks.measuring import seconds
from benchmarks.predictors import System, check_slots, system
from benchmarks.report import Report, in_own_folder, require_trainings, write_page
from benchmarks.systems_page import PAGE, section, table
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.planning import PlanningEvaluation
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import read_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.planning import PlannerSettings, RuleObjectives
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.tensors import require_device
from cjepa_agent.train import TrainConfig, make_run
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from configs.command import command
from configs.presets import preset

SYSTEMS = ("oc-jepa", "c-jepa-1", "c-jepa-2", "oc-dino-wm", "slotformer", "ocvp", "dino-wm")
PACE_STEPS = 24  # steps, from all parts of a training, that its pace is measured by


@dataclass(frozen=True)
class SystemsBenchmark:
    """Trains every system on as many samples and plans with each on the same pairs; a killed run resumes.

    Attributes:
        seconds_of: a system as long as whose training all others are trained, too, at their paces beside it, which are
            measured first. By default all are trained with equal samples.
        systems: ``c-jepa-1`` (1 object hidden), ``c-jepa-2`` and so on, ``oc-jepa`` (the same, unmasked),
            ``oc-dino-wm``, ``slotformer``, ``ocvp``, ``dino-wm`` (patches in place of slots), ``dino-wm-reg`` (of a
            backbone with register tokens, ``encoder=dinov2_reg``); and ablations:
            ``c-jepa-1-token``, ``-tube`` and ``-fixed`` (other kinds of mask), ``c-jepa-2-upto`` (0 to 2 objects, by
            chance), ``c-jepa-1-weighted`` (hidden objects count a tenth in the history and nothing in the future),
            ``c-jepa-1-concat`` (proprioception and action in every slot's token); ``ctt`` (``c-jepa-1`` with
            the terms of Causal Transformation Theory) and ``ctt-published`` (with their degenerate graph);
            ``slotformer-image`` and ``ocvp-image`` (predictions also compared with the frames, which the encoder's
            decoder must be able to draw).
        training_seeds: each system is trained once with each.
        data: episode file, HDF5.
        slots: folder of extracted slots.
        patches, register_patches: folders of extracted patch tokens, for ``dino-wm`` and ``dino-wm-reg``.
        runs: folder for training runs; each has a folder of its own there.
        predictor: C-JEPA's architecture, whose sizes all have; of OCVP's pairs of blocks there are half as many.
        dynamics: what predictors are trained on; ``image_weight`` is replaced for systems that end in ``-image``, and
            ``rollout_from`` and ``rollout_batch`` for ``slotformer`` and ``ocvp`` where C-JEPA predicts several frames
            at once.
        trainer: optimisation; its seed is replaced by ``training_seeds``.
        planner: how all plan.
        objectives: what plans are judged by; those of ``dino-wm`` by the preset ``all``, for it knows no block.
        rules: success rules.
        episodes: pairs per rule, taken evenly from the manifests of ``seeds``.
        budget: environment steps per episode.
        seeds: manifests to take pairs from.
        split: part of the dataset that the pairs are from.
        manifests: folder with manifests; empty means those of the package.
        batch: episodes in lockstep; no effect on results on the CPU.
        device: for planning, ``cpu`` or ``cuda``.
        seed: of the planners.
        out: folder for the JSON file.
        page: Markdown file for the table.

    Raises:
        ValueError: a setting is out of range.
    """

    PRESETS: ClassVar[dict[str, str]] = {"planner": "fast"}

    seconds_of: str | None = None
    systems: tuple[str, ...] = SYSTEMS
    training_seeds: tuple[int, ...] = (0,)
    data: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    slots: Path = field(default_factory=lambda: cache_folder() / "pusht_slots")
    patches: Path = field(default_factory=lambda: cache_folder() / "pusht_patches")
    register_patches: Path = field(default_factory=lambda: cache_folder() / "pusht_register_patches")
    runs: Path = field(default_factory=lambda: cache_folder() / "systems")
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    dynamics: DynamicsTrainingConfig = field(default_factory=DynamicsTrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    objectives: RuleObjectives = field(default_factory=RuleObjectives)
    rules: tuple[str, ...] = ("released", "moderate", "strict")
    episodes: int = 300
    budget: int = 50
    seeds: tuple[int, ...] = (0, 1, 42)
    split: str = "test"
    manifests: str = ""
    batch: int = 4
    device: str = "cpu"
    seed: int = 0
    out: Path = Path("results")
    page: Path = Path("docs/systems.md")

    def __post_init__(self) -> None:
        for name in (*self.systems, *filter(None, [self.seconds_of])):
            system(name, self.predictor)
        require_trainings("systems", self.systems, self.training_seeds)
        self.evaluation(self.systems[0], self.runs)

    def evaluation(self, name: str, weights: Path) -> EvaluateConfig:
        """How a checkpoint of a system is scored."""
        patches = system(name, self.predictor).patches
        return EvaluateConfig(
            weights=str(weights),
            planner=self.planner,
            objectives=preset(RuleObjectives, "objectives", "all") if patches else self.objectives,
            rules=self.rules,
            episodes=self.episodes,
            baselines=False,
            oracle_episodes=0,
            budget=self.budget,
            seeds=self.seeds,
            split=self.split,
            manifests=self.manifests,
            batch=self.batch,
            videos=0,
            device=self.device,
            seed=self.seed,
        )

    def training(self, name: str, seed: int) -> TrainConfig:
        """How a system is trained; its folder has a name that only these settings have."""
        chosen = system(name, self.predictor)
        settings = TrainConfig(
            data=self.data,
            slots=self.tokens(chosen),
            out=self.runs,
            dynamics=self.dynamics,
            trainer=replace(self.trainer, seed=seed, steps=self.steps(name)),
        )
        return in_own_folder(chosen.of(settings), f"{name}-{seed}")

    def tokens(self, chosen: System) -> Path:
        """The folder of what a system predicts."""
        folders = {"slots": self.slots, "patches": self.patches, "register_patches": self.register_patches}
        return folders[chosen.tokens]

    def steps(self, name: str) -> int:
        """How long a system is trained; with ``seconds_of`` its pace must be known."""
        if self.seconds_of in (None, name):
            return self.trainer.steps
        pace = self.paces().entries[name]
        return max(1, int(self.trainer.steps * sum(pace["seconds_of_other"]) / sum(pace["seconds"])))

    def report(self) -> Report:
        """The file of the measurements."""
        name = "benchmark_systems_seconds.json" if self.seconds_of else "benchmark_systems.json"
        return Report(self.out / name, self.identity(), "systems")

    def paces(self) -> Report:
        """The file of what steps take beside those of ``seconds_of``."""
        return Report(self.out / "benchmark_systems_paces.json", self.identity(), "paces")

    def identity(self) -> dict[str, Any]:
        """The settings that results depend on, and what data and slots are of; those of one file must share them.

        The last bits of data that were made anew may depend on the machine, so that these are told apart by how they
        were made.

        Raises:
            FileNotFoundError: there are no slots, or no data.
        """
        recipe = {name: value for name, value in EpisodeFile(self.data).attrs.items() if name != "versions"}
        slots = {name: value for name, value in read_json(self.slots / "slots.json").items() if name != "content"}
        values = asdict(self) | {"data": {"file": self.data.name, **recipe}, "slots": slots}
        for name in ("systems", "training_seeds", "runs", "batch", "out", "page"):
            del values[name]
        return values


def run(config: SystemsBenchmark) -> None:
    """Train and score what is missing in the file, then write and print the table."""
    require_device(config.device)
    for name in config.systems:
        chosen = system(name, config.predictor)
        check_slots(name, chosen, config.tokens(chosen))
    report, equal = config.report(), replace(config, seconds_of=None)
    equal_samples = equal.report()  # its settings are compared now, not after the trainings
    missing = dict.fromkeys(name for name, _ in report.missing(config.systems, config.training_seeds))
    if config.seconds_of:
        paces = config.paces()
        for name in missing.keys() - paces.entries.keys() - {config.seconds_of}:
            paces.add(name, pace(config, name, config.seconds_of))
    report.fill(config.systems, config.training_seeds, partial(measure, config))
    shown = {"samples": equal_samples} | ({"seconds": report} if config.seconds_of else {})
    sections = [section(what, of, SYSTEMS, config.seed, config.page) for what, of in shown.items() if of.entries]
    write_page(config.page, PAGE.format(episodes=config.episodes, split=config.split, sections="\n\n".join(sections)))
    print(f"{plain_table(*table(report.trainings(SYSTEMS)))}\n\nwritten to {report.path} and {config.page}")


def pace(config: SystemsBenchmark, name: str, other: str) -> dict[str, Any]:
    """Seconds of training steps of two systems in turns, so that other work on the machine slows both alike."""
    equal = replace(config, seconds_of=None)
    spent: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        runs = [make_run(replace(equal.training(each, 0), out=Path(folder))) for each in (name, other)]
        for number, step in enumerate(np.linspace(0, config.trainer.steps - 1, PACE_STEPS + 1).astype(int)):
            for key, run in zip(("seconds", "seconds_of_other"), runs, strict=True):
                taken = seconds(partial(run.advance, int(step)), run.fabric.device)
                if number:  # the first step prepares what later ones use
                    spent.setdefault(key, []).append(taken)
    return {"other": other, **spent}


def measure(config: SystemsBenchmark, name: str, seed: int) -> dict[str, Any]:
    """Train a system, as far as that has not been done, and score it."""
    if name == config.seconds_of and (known := replace(config, seconds_of=None).report().of(name, seed)):
        return dict(known)  # equal samples are equal seconds to the one that sets them
    settings = config.training(name, seed)
    training = make_run(settings)
    training.fit()
    rollout = training.stage.validate(training.evaluated().eval())
    weights = settings.out / "checkpoint"
    model = Checkpoint.from_pretrained(weights).model
    evaluation = PlanningEvaluation(config.evaluation(name, weights))
    rows = [row for rule in config.rules for row in evaluation.rows(rule)]
    return {
        "system": name,
        "training_seed": seed,
        "encoder": asdict(model.config.encoder),
        "predictor": asdict(settings.predictor),
        "mask": asdict(settings.mask),
        "ctt": asdict(settings.ctt),
        "image_weight": settings.dynamics.image_weight,
        "parameters": sum(p.numel() for p in model.predictor.parameters()),
        "frame_tokens": model.predictor.frame_tokens,
        "token_width": model.config.encoder.slot_dim,
        "samples": settings.trainer.steps * settings.trainer.batch,
        "training_seconds": training.seconds,
        "training": training.record,
        "rollout": rollout,
        "rows": [row.summary() for row in rows],
        "solved": {row.rule: [outcome.success for outcome in row.outcomes] for row in rows},
    }


main = command("systems", SystemsBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
