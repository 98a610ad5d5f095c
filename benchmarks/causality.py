"""Does masking objects make a predictor causal? ``python -m benchmarks.causality``: train, intervene, compare."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import (
    Report,
    in_own_folder,
    markdown_table,
    require_trainings,
    write_figure,
    write_page,
)
from benchmarks.systems import UNMASKED_SYSTEM, system
from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.dynamics import Predictor
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.intervention import evaluate_interventions
from cjepa_agent.evaluation.results import interval_text, paired_difference, plain_table, points_text
from cjepa_agent.paths import cache_folder
from cjepa_agent.predictor import PredictorConfig
from cjepa_agent.rollout import Removal, RolloutConfig, require_removal, rollout
from cjepa_agent.train import TrainConfig, make_run
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.training.vqa_stage import VQATrainingConfig
from cjepa_agent.video_slots import VideoSlots
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

CONTINUED, INTERVENED = "continued", "intervened"  # folders of a predictor's videos, beside its checkpoint
INFLUENCE_COLUMNS = {"AUROC of shift": "shift", "of parting": "parting", "of attention": "attention, mean"}
# Predictive and counterfactual questions right, %, arXiv 2602.11389, tables A2 (VideoSAUR's slots; SlotFormer's
# and OCVP's are of SAVi) and A4 (tokens or tubes of a share of 7 objects). Counterfactual ones read no predicted frame.
PUBLISHED = {
    UNMASKED_SYSTEM: (75.04, 47.68),
    "c-jepa-1": (78.58, 49.67),
    "c-jepa-2": (79.56, 50.25),
    "c-jepa-3": (83.86, 63.60),
    "c-jepa-4": (86.93, 68.81),
    "c-jepa-1-token": (76.13, 56.92),
    "c-jepa-2-token": (80.80, 65.82),
    "c-jepa-3-token": (75.54, 51.08),
    "c-jepa-4-token": (82.20, 68.88),
    "c-jepa-1-tube": (79.56, 57.83),
    "c-jepa-2-tube": (80.01, 61.71),
    "c-jepa-3-tube": (83.50, 67.21),
    "c-jepa-4-tube": (82.88, 69.81),
    "slotformer": (23.83, 11.10),
    "slotformer-image": (70.79, 47.29),
    "ocvp": (66.08, 43.00),
    "ocvp-image": (75.52, 56.06),
}
PAGE = """# Does masking objects make a predictor causal?

Written by `python -m benchmarks.causality`; settings, machine and all figures are in `{source}`.

Each predictor was trained on slots of the encoder `{encoder}` of the training videos with {samples:,} windows
and the same optimiser, schedule and seeds. `oc-jepa` is C-JEPA with nothing hidden of the history; `c-jepa-<n>` differs
in nothing but n hidden objects, `-upto` in every number up to n, by chance; `-weighted` recovers these with a tenth of
the weight, and what they do later counts nothing. Scored are {scenes} scenes of the {split}
split: each is predicted from its beginning, as it is and once without each object (`removal={removal}`; `empty` for
systems that tell slots apart, as `oc-dino-wm`), and compared with the physics run again; *downstream* is the observed
video with only what the removal changes predicted (`cjepa_agent.rollout.downstream`). What each column means is told in
`cjepa_agent.evaluation.intervention`. Errors are in object radii, means over objects with 95 % intervals over scenes;
questions are answered from predicted collisions, without ALOE, per question with Wilson 95 % intervals. Where ALOE was
trained, too (`aloe_seeds`), it read counterfactual questions from the video predicted without the object, in training
and here. The last column is C-JEPA's paper (arXiv 2602.11389), predictive / counterfactual: CLEVRER's own videos, and
counterfactual questions that read no predicted frame.

C-JEPA sees each slot's last change beside the slot (`predictor.motion`), which the paper's does not, and learns 10
frames per window. SlotFormer, OCVP-Seq and OC-DINO-WM see slots alone and learn the next frame; published, the first
two learn from rollouts. So these rows are lower bounds of what those systems can do.

{table}

For comparison, in the same scenes: {references}

![Error of positions over the frames of the video]({figure})

Above: error over the frames of the video, mean over training seeds, of objects that the removal influences; dashed,
downstream; dotted, with nothing removed; grey, the true factual course as answer to the removal.

{contrast}
"""


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

    systems: tuple[str, ...] = (
        *(UNMASKED_SYSTEM, "c-jepa-1", "c-jepa-2", "c-jepa-3", "c-jepa-4"),
        *("c-jepa-1-weighted", "c-jepa-2-upto", "c-jepa-2-token", "c-jepa-2-tube", "c-jepa-2-fixed"),
        *("slotformer", "ocvp", "oc-dino-wm"),
    )
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
        self.evaluation(self.runs, self.removal)

    def evaluation(self, weights: Path, removal: Removal) -> EvaluateConfig:
        """How a checkpoint is scored."""
        return EvaluateConfig(
            "intervention",
            weights=str(weights),
            data=str(self.data),
            slots=str(self.slots),
            split=self.split,
            episodes=self.episodes,
            removal=removal,
            seed=self.seed,
        )

    def removal_of(self, name: str) -> Removal:
        """How objects are taken away from a system."""
        return self.removal if self.built(name).orderless else "empty"

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

    def answering(self, predictor: Path, seed: int) -> TrainConfig:
        """How ALOE is trained on the videos of the predictor that was trained in a folder."""
        return TrainConfig(
            stage="vqa",
            data=self.data,
            slots=predictor / CONTINUED,
            out=predictor / f"aloe-{seed}",
            init=self.aloe_init,
            aloe=self.aloe,
            vqa=replace(self.vqa, intervened=predictor / INTERVENED),
            trainer=replace(self.aloe_trainer, seed=seed),
        )

    def identity(self) -> dict[str, Any]:
        """The settings that results depend on; those of one file must share them."""
        values = asdict(self)
        of_aloe = () if self.aloe_seeds else ("aloe", "vqa", "aloe_init", "aloe_trainer", "downstream")
        for name in ("systems", "training_seeds", "runs", "out", "page", *of_aloe):
            del values[name]
        return values


def run(config: CausalityBenchmark) -> None:
    """Train and score what is missing in the file, then write and print the table."""
    encoder = SlotAutoencoder.load(config.slots)
    for name in config.systems:  # before hours of training
        require_removal(encoder.encoder, config.built(name), config.removal_of(name))
    report = Report(config.out / "benchmark_causality.json", config.identity(), "predictors")
    entries = report.fill(config.systems, config.training_seeds, partial(measure, config))
    header, cells = table(entries)
    contrast, figure = contrasts(entries, config.seed), config.page.with_suffix(".png")
    text = PAGE.format(
        encoder=encoder.config.kind,
        source=report.source,
        samples=config.trainer.steps * config.trainer.batch,
        split=config.split,
        scenes=entries[0]["scenes"],
        removal=config.removal,
        table=markdown_table(header, cells),
        references=references(entries[0]),
        figure=figure.name,
        contrast=contrast,
    )
    draw(entries, figure)
    write_page(config.page, text)
    print(f"{plain_table(header, cells)}\n\n{contrast}\n\nwritten to {report.path} and {config.page}")


def measure(config: CausalityBenchmark, name: str, seed: int) -> dict[str, Any]:
    """Train a predictor, as far as that has not been done, and intervene in its predictions."""
    settings = config.training(name, seed)
    training = make_run(settings)
    training.fit()
    weights = settings.out / "checkpoint"
    predictor, removal = Checkpoint.from_pretrained(weights).model.predictor, config.removal_of(name)
    if config.aloe_seeds:
        roll_out(config, settings.out, removal)
    answers = [answered(config, settings.out, seed) for seed in config.aloe_seeds]
    for videos in (CONTINUED, INTERVENED):  # of 10,000 videos about 20 GB, which the next predictor needs
        shutil.rmtree(settings.out / videos, ignore_errors=True)
    return {
        "system": name,
        "training_seed": seed,
        "parameters": sum(p.numel() for p in predictor.parameters()),
        "samples": config.trainer.steps * config.trainer.batch,
        "training_seconds": training.seconds,
        "removal": removal,
        **evaluate_interventions(config.evaluation(weights, removal)),
        "aloe": answers,
    }


def roll_out(config: CausalityBenchmark, predictor: Path, removal: Removal) -> None:
    """Write a predictor's videos, continued and without each object, beside its checkpoint."""
    rolled = RolloutConfig(
        str(predictor / "checkpoint"),
        config.slots,
        predictor / CONTINUED,
        splits=tuple(dict.fromkeys(("train", "validation", config.split))),
        limit=config.vqa.limit,
    )
    rollout(rolled)
    without = replace(rolled, out=predictor / INTERVENED, frames=FRAMES, remove=removal, data=config.data)
    rollout(replace(without, downstream=config.downstream))


def answered(config: CausalityBenchmark, predictor: Path, seed: int) -> dict[str, list[int]]:
    """For each type of question whether each is answered right by ALOE, trained on a predictor's videos."""
    settings = config.answering(predictor, seed)
    make_run(settings).fit()
    data, slots = Dataset(config.data), VideoSlots(settings.slots)
    intervened = Intervened(predictor / INTERVENED, data, slots)
    file = data.questions(config.split).first(config.vqa.limit)
    asked = SlotQuestions(file, slots, config.aloe.frames, intervened)
    right = asked.right(predict(load(settings.out / "checkpoint"), asked))
    return {kind: right[asked.type == number].astype(int).tolist() for number, kind in enumerate(TYPES)}


def table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, a line per predictor."""
    columns = [_cells(entry) for entry in entries]
    return list(columns[0]), [list(cells.values()) for cells in columns]


def _cells(entry: Mapping[str, Any]) -> dict[str, str]:
    errors, pairs = entry["position_error_radii"], entry["collision_pairs"]
    questions, influence = entry["questions"], entry["influence"]
    return {
        "system": entry["system"],
        "training seed": str(entry["training_seed"]),
        "error, nothing removed": interval_text(errors["factual"]["predicted"], 2),
        "error of influenced": interval_text(errors["influenced"]["predicted"], 2),
        "downstream": interval_text(errors["influenced"]["downstream"], 2),
        "F1 of pairs, nothing removed": f"{pairs['factual']['predicted']['F1']:.3f}",
        "after removal": f"{pairs['after_removal']['predicted']['F1']:.3f}",
        "F1 downstream": f"{pairs['after_removal']['downstream']['F1']:.3f}",
        **{f"{kind}, %": interval_text(scores["predicted"], 1) for kind, scores in questions.items() if scores},
        **{
            f"{kind} downstream, %": interval_text(scores["downstream"], 1)
            for kind, scores in questions.items()
            if scores and kind == "counterfactual"
        },
        **{f"{kind} by ALOE, %": f"{100 * share:.1f}" for kind, share in _by_aloe(entry).items()},
        **{
            column: f"{influence[score]['AUROC']:.3f}" if score in influence else ""
            for column, score in INFLUENCE_COLUMNS.items()
        },
        "published": " / ".join(f"{share:.2f}" for share in PUBLISHED.get(entry["system"], ())),
    }


def _by_aloe(entry: Mapping[str, Any]) -> dict[str, float]:
    """Share of right answers by type that is asked, mean over ALOE's seeds."""
    asked = [kind for kind in TYPES if entry["aloe"] and entry["aloe"][0][kind]]
    return {kind: float(np.mean([right[kind] for right in entry["aloe"]])) for kind in asked}


def _right(entry: Mapping[str, Any], reader: str, kind: str) -> NDArray[np.float64]:
    """Of each question of a kind whether it is answered right; by ALOE as a mean over its seeds."""
    if reader == "ALOE":
        return np.mean([right[kind] for right in entry["aloe"]], axis=0)  # type: ignore[no-any-return]
    return np.array(entry["answers"][kind][reader], float)


def references(entry: Mapping[str, Any]) -> str:
    """What other answers than predictions reach, in one sentence."""
    errors, pairs, questions = entry["position_error_radii"], entry["collision_pairs"], entry["questions"]
    unchanged = f"{interval_text(errors['influenced']['unchanged'], 2)} (influenced)"
    parts = [
        f"the true factual course as answer to a removal has an error of {unchanged} and an F1 of "
        f"{pairs['after_removal']['unchanged']['F1']:.3f}",
        f"the read-out on true positions has an F1 of {pairs['after_removal']['true positions']['F1']:.3f}",
        *(
            f"{kind} questions come out right in {interval_text(scores['unchanged'], 1)} % with the factual course "
            f"{'going on without collisions' if kind == 'predictive' else 'unchanged'} and in "
            f"{interval_text(scores['true positions'], 1)} % with true positions"
            for kind, scores in questions.items()
            if scores
        ),
    ]
    return "; ".join(parts) + "."


def contrasts(entries: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Each system against C-JEPA without a mask of the same training seeds, paired per question."""
    by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(entry["system"], {})[entry["training_seed"]] = entry
    plain, lines = by_name.pop(UNMASKED_SYSTEM, {}), []
    for name, own in by_name.items():
        seeds = sorted(own.keys() & plain.keys())
        by_aloe = seeds and all(entry.get("aloe") for s in seeds for entry in (own[s], plain[s]))
        readers = [("downstream", "counterfactual"), ("predicted", "counterfactual"), ("predicted", "predictive")]
        readers += [("ALOE", kind) for kind in TYPES] if by_aloe else []
        for reader, kind in readers:
            right, without = ([_right(of[s], reader, kind) for s in seeds] for of in (own, plain))
            if seeds and right[0].size:
                lines.append(
                    [name, kind, reader, str(len(seeds)), points_text(paired_difference(right, without, seed))]
                )
    if not lines:
        return ""
    header = ["system", "questions", "read by", "training seeds", "points against nothing hidden"]
    note = "Intervals are of questions drawn with replacement; they do not cover the training's randomness."
    return f"{markdown_table(header, lines)}\n\n{note}"


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Errors over the frames of the video, a colour per system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(entry["system"], []).append(entry["position_error_by_frame"])

    def course(own: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
        rows = np.array([errors[name] for errors in own], float)  # frames without an object are NaN
        return np.ma.masked_invalid(rows).mean(axis=0).filled(np.nan)  # type: ignore[no-any-return]

    for number, (name, own) in enumerate(by_name.items()):
        colour = f"C{number}"
        axes.plot(course(own, "influenced, predicted"), color=colour, label=name)
        axes.plot(course(own, "influenced, downstream"), "--", color=colour)
        axes.plot(course(own, "factual, predicted"), ":", color=colour)
    axes.plot(course([entries[0]["position_error_by_frame"]], "influenced, unchanged"), color="0.6", label="unchanged")
    axes.set_xlabel("frame")
    axes.set_ylabel("error [radii]")
    axes.grid(True, alpha=0.3)
    axes.legend()
    write_figure(path, figure)


main = command("causality", CausalityBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
