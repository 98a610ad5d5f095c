"""Does masking objects make a predictor causal? ``python -m benchmarks.causality``: train, intervene, compare."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.causality_page import (
    PAGE,
    asking,
    contrasts,
    draw,
    influence_section,
    note,
    references,
    systems_table,
    title,
    trainings_table,
)
from benchmarks.predictors import UNMASKED_SYSTEM, check_slots, system
from benchmarks.report import Report, digest, in_own_folder, markdown_table, require_trainings, write_page
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.intervention import evaluate_interventions
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.paths import cache_folder
from cjepa_agent.predictors.base import Predictor
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.rollout import RolloutConfig, rollout
from cjepa_agent.train import TrainConfig, make_run
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.training.vqa_stage import VQATrainingConfig
from cjepa_agent.video_prediction import Removal, require_removal
from cjepa_agent.vqa.aloe import ALOEConfig
from cjepa_agent.vqa.answerer import predict
from cjepa_agent.vqa.checkpoint import AnyALOEConfig, load
from cjepa_agent.vqa.data import SlotQuestions
from cjepa_agent.vqa.intervened import Intervened
from configs.command import command
from configs.presets import preset
from envs.clevrer.dataset import Dataset
from envs.clevrer.physics import FRAMES
from envs.clevrer.questions.files import TYPES

SYSTEMS = (
    *(UNMASKED_SYSTEM, "c-jepa-1", "c-jepa-1-weighted", "c-jepa-2", "c-jepa-3", "c-jepa-4"),
    *("c-jepa-2-upto", "c-jepa-2-token", "c-jepa-2-tube", "c-jepa-2-fixed", "slotformer", "ocvp", "oc-dino-wm"),
)
CONTINUED, INTERVENED = "continued", "intervened"  # folders of a predictor's videos, beside its checkpoint


@dataclass(frozen=True)
class CausalityBenchmark:
    """Trains predictors of CLEVRER videos and asks each what would happen without an object.

    A killed run resumes.

    Attributes:
        systems: ``oc-jepa`` (nothing hidden), ``c-jepa-1`` (1 object hidden), ``c-jepa-2-token``, ``-tube`` and
            ``-fixed`` (other kinds of mask at the same rate), ``c-jepa-2-upto`` (0 to 2 objects, by chance, as in the
            paper's appendix E.3; the others hide as many in every sample), ``c-jepa-1-weighted`` (1 object hidden that
            counts a tenth in the history's loss and nothing in the future's), ``slotformer``, ``ocvp``, ``oc-dino-wm``,
            ``ctt``, ``ctt-published``; see ``benchmarks.systems``.
        training_seeds: each is trained once with each.
        data: CLEVRER data set of ``python -m cjepa_agent.collect env=clevrer``.
        slots: folder of its slots, ``python -m cjepa_agent.extract``, of the true state (``encoder=state``) or of
            pixels.
        runs: folder for training runs; each has a folder of its own there.
        predictor: C-JEPA's architecture, whose sizes the others have.
        dynamics: what predictors are trained on.
        trainer: optimisation; its seed is replaced by ``training_seeds``.
        aloe_seeds: with each of them ALOE learns to answer from each predictor's videos: predictive questions from the
            continued video, counterfactual ones from the video predicted without the object; none by default.
        aloe: its architecture.
        vqa: what it learns from, ``intervened`` is replaced; of more videos than ``vqa.limit`` of each split there are
            no predictions, and no answers are scored.
        aloe_init: folder of a trained ALOE that all of these start from; none by default.
        aloe_trainer: its optimisation; its seed is replaced by ``aloe_seeds``.
        downstream: whether counterfactual questions read the observed video with only what the removal changes
            predicted, or the video predicted from its beginning (``python -m cjepa_agent.rollout``).
        removal: how objects are taken away, see ``python -m cjepa_agent.evaluate``; ``empty`` for a system that tells
            slots apart, whatever this says.
        keep: frames of each call that are kept, see there; 0 for all, as systems with one frame per call always keep.
        every: steps from which to which it is asked what a removal changes, see there; 0 for as many as are kept.
        episodes: scenes to predict, and training scenes that the read-out is fitted on; null for all.
        split: part of the data set that is scored.
        seed: of the read-out and of resampling.
        out: folder for the JSON file.
        page: Markdown file for the table.

    Raises:
        ValueError: a setting is out of range.
    """

    PRESETS: ClassVar[dict[str, str]] = {
        "predictor": "clevrer",
        "dynamics": "clevrer",
        "trainer": "clevrer",
        "aloe": "grounded",
        "vqa": "grounded",
    }

    systems: tuple[str, ...] = SYSTEMS
    training_seeds: tuple[int, ...] = (0, 1, 2)
    data: Path = field(default_factory=lambda: cache_folder() / "clevrer")
    slots: Path = field(default_factory=lambda: cache_folder() / "clevrer_slots")
    runs: Path = field(default_factory=lambda: cache_folder() / "causality")
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    dynamics: DynamicsTrainingConfig = field(default_factory=DynamicsTrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    aloe_seeds: tuple[int, ...] = ()
    aloe: AnyALOEConfig = field(default_factory=ALOEConfig)
    vqa: VQATrainingConfig = field(default_factory=VQATrainingConfig)
    aloe_init: str | None = None
    aloe_trainer: TrainerConfig = field(default_factory=lambda: preset(TrainerConfig, "trainer", "vqa"))
    downstream: bool = True
    removal: Removal = "drop"
    keep: int = 0
    every: int = 0
    episodes: int | None = None
    split: str = "validation"
    seed: int = 0
    out: Path = Path("results")
    page: Path = Path("docs/causality.md")

    def __post_init__(self) -> None:
        for name in self.systems:
            if system(name, self.predictor).patches:
                raise ValueError(f"systems has {name!r}, which predicts patches; this study needs objects")
        require_trainings("systems", self.systems, self.training_seeds)
        if self.keep > self.predictor.future:
            raise ValueError(f"keep={self.keep} is more than the predictor.future={self.predictor.future} of a call")
        if self.every > (kept := self.keep or self.predictor.future):
            raise ValueError(f"every={self.every} is more than the {kept} that are kept")
        self.evaluation(self.runs, self.removal, self.keep)

    def evaluation(self, weights: Path, removal: Removal, keep: int) -> EvaluateConfig:
        """How a checkpoint is scored."""
        return EvaluateConfig(
            "intervention",
            weights=str(weights),
            data=str(self.data),
            slots=str(self.slots),
            split=self.split,
            episodes=self.episodes,
            removal=removal,
            keep=keep,
            every=self.every,
            seed=self.seed,
        )

    def removal_of(self, name: str) -> Removal:
        """How objects are taken away from a system."""
        return self.removal if self.built(name).orderless else "empty"

    def keep_of(self, name: str) -> int:
        """How many frames of each call of a system are kept; 0 for all."""
        return min(self.keep, self.built(name).future)

    def built(self, name: str) -> Predictor:
        """A system's predictor, for what is the same of all its sizes."""
        return system(name, self.predictor).predictor.build(n_slots=1, slot_dim=1, proprio_dim=0, action_dim=0)

    def training(self, name: str, seed: int) -> TrainConfig:
        """How a predictor is trained; its folder has a name that only these settings have."""
        settings = TrainConfig(
            data=self.data,
            slots=self.slots,
            out=self.runs,
            dynamics=self.dynamics,
            trainer=replace(self.trainer, seed=seed),
        )
        return in_own_folder(system(name, self.predictor).of(settings), f"{name}-{seed}")

    def answering(self, predictor: Path, seed: int, removal: Removal) -> TrainConfig:
        """How ALOE is trained on the videos of a predictor; its folder has a name that only these settings have."""
        learned = (removal, self.downstream, self.aloe, self.vqa, self.aloe_init, self.aloe_trainer)
        return TrainConfig(
            stage="vqa",
            data=self.data,
            slots=predictor / CONTINUED,
            out=predictor / f"aloe-{seed}-{digest(learned)}",
            init=self.aloe_init,
            aloe=self.aloe,
            vqa=replace(self.vqa, intervened=predictor / INTERVENED),
            trainer=replace(self.aloe_trainer, seed=seed),
        )

    def identity(self) -> dict[str, Any]:
        """The settings that results depend on, and what the slots are of; those of one file must share them.

        Raises:
            FileNotFoundError: there are no slots.
        """
        values = asdict(self) | {"slots": VideoSlots(self.slots).identity}
        of_aloe = () if self.aloe_seeds else ("aloe", "vqa", "aloe_init", "aloe_trainer", "downstream")
        for name in ("systems", "training_seeds", "runs", "out", "page", *of_aloe):
            del values[name]
        return values


def run(config: CausalityBenchmark) -> None:
    """Train and score what is missing in the file, then write and print the table."""
    encoder = SlotAutoencoder.load(config.slots)
    for name in config.systems:  # before hours of training
        require_removal(encoder.encoder, config.built(name), config.removal_of(name))
        check_slots(name, system(name, config.predictor), config.slots)
    report = Report(config.out / "benchmark_causality.json", config.identity(), "predictors")
    report.fill(config.systems, config.training_seeds, partial(measure, config))
    entries = report.trainings(SYSTEMS)
    figure = config.page.with_suffix(".png")
    text = PAGE.format(
        title=title(entries, encoder.encoder.privileged, config.trainer.steps),
        note=note(entries) + report.averages,
        encoder=encoder.config.kind,
        source=report.source,
        samples=config.trainer.steps * config.trainer.batch,
        split=config.split,
        scenes=entries[0]["scenes"],
        removal=config.removal,
        asking=asking(config.keep, config.every),
        systems=markdown_table(*systems_table(entries)),
        contrast=contrasts(entries, config.seed),
        trainings=markdown_table(*trainings_table(entries)),
        references=references(entries[0]),
        figure=figure.name,
        influence=influence_section(entries, config.page.with_name(f"{config.page.stem}_attention.png")),
    )
    draw(entries, figure)
    write_page(config.page, text)
    print(f"{plain_table(*systems_table(entries))}\n\nwritten to {report.path} and {config.page}")


def measure(config: CausalityBenchmark, name: str, seed: int) -> dict[str, Any]:
    """Train a predictor, as far as that has not been done, and intervene in its predictions."""
    settings = config.training(name, seed)
    training = make_run(settings)
    training.fit()
    weights = settings.out / "checkpoint"
    predictor = Checkpoint.from_pretrained(weights).model.predictor
    removal, keep = config.removal_of(name), config.keep_of(name)
    if config.aloe_seeds:
        roll_out(config, settings.out, removal, keep)
    answers = [answered(config, settings.out, seed, removal) for seed in config.aloe_seeds]
    scored = evaluate_interventions(config.evaluation(weights, removal, keep))
    for videos in (CONTINUED, INTERVENED):  # of 10,000 videos about 20 GB, which the next predictor needs
        shutil.rmtree(settings.out / videos, ignore_errors=True)
    return {
        "system": name,
        "training_seed": seed,
        "parameters": sum(p.numel() for p in predictor.parameters()),
        "samples": config.trainer.steps * config.trainer.batch,
        "training_seconds": training.seconds,
        "training": training.record,
        "removal": removal,
        "keep": keep,
        **scored,
        "aloe": answers,
        "asked_aloe": asked(config) if answers else {},
    }


def roll_out(config: CausalityBenchmark, predictor: Path, removal: Removal, keep: int) -> None:
    """Write a predictor's videos, continued and without each object, beside its checkpoint."""
    rolled = RolloutConfig(
        str(predictor / "checkpoint"),
        config.slots,
        predictor / CONTINUED,
        splits=tuple(dict.fromkeys(("train", "validation", config.split))),
        limit=config.vqa.limit,
        keep=keep,
    )
    rollout(rolled)
    without = replace(rolled, out=predictor / INTERVENED, frames=FRAMES, remove=removal, data=config.data)
    rollout(replace(without, downstream=config.downstream, every=config.every if config.downstream else 0))


def answered(config: CausalityBenchmark, predictor: Path, seed: int, removal: Removal) -> dict[str, list[int]]:
    """For each type of question whether each is answered right by ALOE, trained on a predictor's videos."""
    settings = config.answering(predictor, seed, removal)
    make_run(settings).fit()
    data, slots = Dataset(config.data), VideoSlots(settings.slots)
    intervened = Intervened(predictor / INTERVENED, data, slots)
    file = data.questions(config.split).first(config.vqa.limit)
    questions = SlotQuestions(file, slots, config.aloe.frames, intervened)
    right = questions.right(predict(load(settings.out / "checkpoint"), questions))
    return {kind: right[questions.type == number].astype(int).tolist() for number, kind in enumerate(TYPES)}


def asked(config: CausalityBenchmark) -> dict[str, dict[int, int]]:
    """For each type of question that ALOE answers how many there are of each scene, in the order of the answers."""
    counts: dict[str, Counter[int]] = {kind: Counter() for kind in TYPES}
    for scene in Dataset(config.data).questions(config.split).first(config.vqa.limit).whole().scenes:
        for question in scene["questions"]:
            counts[question["question_type"]][int(scene["scene_index"])] += 1
    return {kind: dict(count) for kind, count in counts.items()}


main = command("causality", CausalityBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
