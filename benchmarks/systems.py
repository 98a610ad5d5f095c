"""C-JEPA beside other predictors of slots, trained and scored alike: ``python -m benchmarks.systems``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, cast

import numpy as np

from benchmarks.measuring import seconds
from benchmarks.report import (
    Report,
    in_own_folder,
    markdown_table,
    require_trainings,
    write_figure,
    write_page,
)
from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.ctt import CTTConfig
from cjepa_agent.data import EpisodeFile
from cjepa_agent.dynamics import TransformerConfig
from cjepa_agent.encoder import CONFIG
from cjepa_agent.evaluation.config import EvaluateConfig, RuleObjectives
from cjepa_agent.evaluation.planning import PlanningEvaluation
from cjepa_agent.evaluation.results import paired_difference, plain_table, points_text
from cjepa_agent.files import read_json
from cjepa_agent.masking import MaskConfig, MaskKind
from cjepa_agent.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.ocvp import OCVPConfig
from cjepa_agent.patches import PatchTokenConfig
from cjepa_agent.paths import cache_folder
from cjepa_agent.planning import PlannerSettings
from cjepa_agent.predictor import PredictorConfig
from cjepa_agent.slotformer import SlotFormerConfig
from cjepa_agent.train import TrainConfig, make_run
from cjepa_agent.training.image_loss import drawn_size
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.world_model import AnyPredictorConfig
from configs.command import command
from configs.presets import preset

UNMASKED = MaskConfig(count=0)
# In the paper's loss the 5 hidden cells of an object in CLEVRER's history of 6 frames weigh as much as the 70 of 7
# slots in 10 future frames; with this weight about as much as 5 of these.
WEIGHTED_HISTORY = 0.1
IMAGE_WEIGHT = 4.0  # published for SlotFormer and OCVP is 1, of colours in -1..1, not 0..1
SYSTEMS = ("oc-jepa", "c-jepa-1", "c-jepa-2", "oc-dino-wm", "slotformer", "ocvp", "dino-wm")
ROLLED_WINDOWS = 8  # per step; those of all 32 would take as long as 15 of C-JEPA's steps
PACE_STEPS = 24  # steps, from all parts of a training, that its pace is measured by
# Success on Push-T in %, arXiv 2602.11389: table 3, table A5 (a quarter and half of 4 objects hidden) and figure 3.
PUBLISHED = {
    "c-jepa-1": 88.67,
    "c-jepa-2": 82.67,
    "c-jepa-1-token": 84.67,
    "c-jepa-2-token": 84.00,
    "c-jepa-1-tube": 55.33,
    "c-jepa-2-tube": 5.33,
    "c-jepa-1-concat": 71.33,
    "oc-jepa": 76.00,
    "oc-dino-wm": 60.67,
    "dino-wm": 91.33,
    "dino-wm-reg": 88.00,
}
PAGE = """# C-JEPA beside other predictors of slots

Written by `python -m benchmarks.systems`. Each system was trained on the same slots, with the same optimiser and
schedule, and planned the same {episodes} {split} pairs per rule with the same search. `dino-wm` predicts patch tokens
of the same frames in place of slots, by default of a small encoder trained on these frames (DINO-WM's are 196 x 384, of
DINOv2); it knows no block, so that all patches and proprioception are its goal. By default all predict the change from
the last frame (`predictor.residual`), which SlotFormer and DINO-WM as published do not. Success is in percent with
Wilson 95 % intervals; they do not cover the training's randomness. The rollout error is that of slots on validation
episodes as a share of the error of copying the first frame (for `dino-wm` that of patch tokens, which is not
comparable). Parameters are those of the predictor; tokens are those of one frame, and their width is the encoder's.
Seconds are wall-clock time on a machine that may have had other work, so that those of one row tell little beside those
of another; how many steps are equal seconds is measured side by side (`benchmark_systems_paces.json`). The JSON file
tells what machine each row was trained on and in which precision: bfloat16 where the processor computes in it, else
float32 (`trainer.precision=auto`). The last column is C-JEPA's paper (arXiv 2602.11389): other data, encoders and
training, 3 x 50 of the training episodes as pairs, rule `released`. Rule `moderate` has the predicate and the pairs of
`released`.

{sections}
"""
UNMASKED_SYSTEM = "oc-jepa"  # what all others are compared with
CONTRASTS = """

The same pairs solved more, in points against `oc-jepa` of the same training seeds, with bootstrap 95 %
intervals of the pairs:

{table}"""
SECTION = """## Equal {what}

Settings, machine and all figures are in `{source}`.

{table}{contrasts}

![success]({picture})"""


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
        predictor: architecture.
        mask: what is hidden from it while it trains.
        tokens: what it predicts: ``slots``, ``patches``, or ``register_patches`` of a backbone with register tokens.
        ctt: terms of the attention graph beside C-JEPA's loss.
        images: whether predictions are also compared as images, with the published weight.
        rollouts: whether it learns from rollouts of some windows from its first step on.
        patches: whether it predicts patch tokens in place of slots.
    """

    predictor: AnyPredictorConfig
    mask: MaskConfig = UNMASKED
    tokens: Literal["slots", "patches", "register_patches"] = "slots"
    ctt: CTTConfig = field(default_factory=CTTConfig)
    images: bool = False
    rollouts: bool = False

    @property
    def patches(self) -> bool:
        """See the class."""
        return self.tokens != "slots"

    def of(self, settings: TrainConfig) -> TrainConfig:
        """Its training, with data, schedule and whatever else all systems share from ``settings``."""
        dynamics = replace(settings.dynamics, image_weight=IMAGE_WEIGHT) if self.images else settings.dynamics
        if self.rollouts:
            dynamics = replace(dynamics, rollout_from=0.0, rollout_batch=ROLLED_WINDOWS)
        return replace(settings, predictor=self.predictor, mask=self.mask, ctt=self.ctt, dynamics=dynamics)


def system(name: str, cjepa: PredictorConfig) -> System:
    """The system of a name: C-JEPA with a mask, or another of about its parameters.

    Args:
        name: see ``SystemsBenchmark.systems``.
        cjepa: architecture of C-JEPA.

    Raises:
        ValueError: the name is unknown.
    """
    values = {item.name: getattr(cjepa, item.name) for item in fields(TransformerConfig)}
    # Where C-JEPA learns several frames at once, what predicts one at a time learns from rollouts, as published.
    rollouts = cjepa.future > 1
    slotformer = SlotFormerConfig(**values)
    ocvp = OCVPConfig(**{**values, "depth": (cjepa.depth + 1) // 2})  # each of its layers has two blocks
    known = {
        "oc-jepa": System(cjepa),
        "oc-dino-wm": System(OCDINOWMConfig(**values)),
        "dino-wm": System(OCDINOWMConfig(**values), tokens="patches"),
        "dino-wm-reg": System(OCDINOWMConfig(**values), tokens="register_patches"),
        "slotformer": System(slotformer, rollouts=rollouts),
        "slotformer-image": System(slotformer, images=True, rollouts=rollouts),
        "ocvp": System(ocvp, rollouts=rollouts),
        "ocvp-image": System(ocvp, images=True, rollouts=rollouts),
        "ctt": System(cjepa, MaskConfig(count=1), ctt=preset(CTTConfig, "ctt", "corrected")),
        "ctt-published": System(cjepa, MaskConfig(count=1), ctt=preset(CTTConfig, "ctt", "published")),
    }
    if masked := re.fullmatch(r"c-jepa-([1-9]\d*)(?:-(token|tube|fixed)|-(upto)|-(concat)|-(weighted))?", name):
        count, kind, upto, concat, weighted = masked.groups()
        predictor = replace(cjepa, auxiliary="concat") if concat else cjepa
        mask = MaskConfig(int(count), cast(MaskKind, kind or "object"), upto is not None)
        if weighted:
            mask = replace(mask, history_weight=WEIGHTED_HISTORY, future_weight=0.0)
        return System(predictor, mask)
    if name not in known:
        raise ValueError(
            f"systems has {name!r}; expected some of {['c-jepa-<objects hidden>', *known]}; the first may end in "
            f"-token, -tube, -fixed (mask.kind), -upto (mask.upto), -weighted (mask.history_weight, future_weight) or "
            f"-concat (predictor.auxiliary)"
        )
    return known[name]


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
    header, cells = table(report.trainings(SYSTEMS))
    sections = [section(config)]
    if config.seconds_of and equal_samples.entries:
        sections.insert(0, section(equal))
    page = PAGE.format(episodes=config.episodes, split=config.split, sections="\n\n".join(sections))
    write_page(config.page, page)
    print(f"{plain_table(header, cells)}\n\nwritten to {report.path} and {config.page}")


def section(config: SystemsBenchmark) -> str:
    """The part of the page about one file, and its picture beside the page."""
    report = config.report()
    entries = report.trainings(SYSTEMS)
    what = "samples" if config.seconds_of is None else "seconds"
    picture = config.page.with_name(f"{config.page.stem}_{what}.png")
    draw(entries, picture)
    shown = markdown_table(*table(entries))
    return SECTION.format(
        what=what,
        source=report.source,
        table=shown,
        contrasts=contrasts(entries, config.seed),
        picture=picture.name,
    )


def contrasts(entries: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Each system against the unmasked one, paired; empty without that."""
    solved = {(entry["system"], entry["training_seed"]): entry["solved"] for entry in entries}
    rules, lines = list(entries[0]["solved"]), []
    for name in dict.fromkeys(entry["system"] for entry in entries):
        both = [(own, solved[UNMASKED_SYSTEM, s]) for (other, s), own in solved.items()
                if other == name != UNMASKED_SYSTEM and (UNMASKED_SYSTEM, s) in solved]  # fmt: skip
        if both:
            pairs = [([own[rule] for own, _ in both], [plain[rule] for _, plain in both]) for rule in rules]
            shown = [points_text(paired_difference(*own_and_plain, seed)) for own_and_plain in pairs]
            lines.append([name, str(len(both)), *shown])
    return CONTRASTS.format(table=markdown_table(["system", "training seeds", *rules], lines)) if lines else ""


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Success of all trainings with intervals, a panel per rule, and what C-JEPA's paper reports for ``released``."""
    from matplotlib.figure import Figure

    rules = [row["rule"] for row in entries[0]["rows"]]
    names = [f"{entry['system']}, {entry['training_seed']}" for entry in entries]
    figure = Figure(figsize=(3.5 * len(rules), 1.8 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(rules), sharex=True, sharey=True, squeeze=False)[0]
    for number, (rule, axes) in enumerate(zip(rules, panels, strict=True)):
        rows = [entry["rows"][number] for entry in entries]
        success = np.array([row["success"] for row in rows])
        errors = [success - [row["low"] for row in rows], [row["high"] for row in rows] - success]
        axes.errorbar(success, names, xerr=errors, fmt="o", elinewidth=0.8, label="here")
        known = [(PUBLISHED[e["system"]], n) for e, n in zip(entries, names, strict=True) if e["system"] in PUBLISHED]
        if rule == "released" and known:
            axes.plot(*zip(*known, strict=True), "kx", label="published, other data")
            figure.legend(loc="outside lower center", ncols=2)
        axes.set_xlabel(f"{rule}: success, %")
        axes.grid(True, alpha=0.3)
    panels[0].margins(y=0.5 / len(names))
    panels[0].invert_yaxis()
    write_figure(path, figure)


def check_slots(name: str, chosen: System, folder: Path) -> None:
    """Find out before hours of training whether a folder holds what a system is trained on.

    Raises:
        FileNotFoundError: there are no slots, or no patch tokens.
        ValueError: there are slots for patch tokens, or the other way round, or of an encoder that draws no frames, or
            fewer than the mask hides.
    """
    patches = chosen.patches
    kind = "patches" if patches else "slots"
    encoder = "dinov2_reg" if chosen.tokens == "register_patches" else kind
    advice = f"train stage=encoder encoder={encoder}, then extract with that encoder= and out={folder}"
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{name} needs {kind}, but {folder} has none; {advice}")
    autoencoder = SlotAutoencoder.load(folder)
    if isinstance(autoencoder.config, PatchTokenConfig) != patches:
        raise ValueError(f"{name} needs {kind}, but {folder} holds others; {advice}")
    if chosen.mask.count > autoencoder.config.n_slots:
        raise ValueError(
            f"{name} hides {chosen.mask.count} objects, but {folder} holds {autoencoder.config.n_slots} slots"
        )
    if chosen.images:
        drawn_size(autoencoder)


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


def table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, a line per training."""
    columns = [_cells(entry) for entry in entries]
    return list(columns[0]), [list(cells.values()) for cells in columns]


def _cells(entry: Mapping[str, Any]) -> dict[str, str]:
    rows = entry["rows"]
    solves = sum(row["replans"] for row in rows)
    seconds = sum(row["seconds_per_episode"] * row["episodes"] for row in rows)
    blocks = max(int(key.rsplit("_", 1)[1]) for key in entry["rollout"])
    return {
        "system": entry["system"],
        "training seed": str(entry["training_seed"]),
        **{row["rule"]: f"{row['success']:.1f} ({row['low']:.1f} to {row['high']:.1f})" for row in rows},
        f"rollout error, {blocks} blocks": f"{100 * entry['rollout'][f'against_copy_{blocks}']:.1f} %",
        "tokens x width": f"{entry['frame_tokens']} x {entry['token_width']}",
        "parameters": f"{entry['parameters']:,}",
        "samples": f"{entry['samples']:,}",
        "training, s": f"{entry['training_seconds']:.0f}",
        "s / solve": f"{seconds / solves:.3f}",
        "published": f"{PUBLISHED[entry['system']]:.2f}" if entry["system"] in PUBLISHED else "",
    }


main = command("systems", SystemsBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
