"""The page of ``benchmarks.causality``: tables, contrasts and a picture of what it measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.predictors import UNMASKED_SYSTEM
from benchmarks.report import markdown_table, write_figure
from cjepa_agent.intervals import interval_text, paired_difference, points_text
from envs.clevrer.questions.files import TYPES

INFLUENTIAL = "after_removal_with_influence"  # what older results lack
INFLUENCE_SCORES = {"shift": "shift", "parting": "parting", "attention": "attention, mean"}
INFLUENCE_MEASURES = {"AUROC": "AUROC", "average_precision": "AP"}
HEAD = re.compile(r"attention, layer (\d+), head \d+")
PAIRS = (
    ("factual", "predicted"),
    ("after_removal", "downstream"),
    (INFLUENTIAL, "downstream"),
)
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
PAGE = """# Does masking objects make a predictor causal? {title}

Written by `python -m benchmarks.causality`; settings, machine and all figures are in `{source}`.
[masking.md](masking.md) tells what they say, and has the command.{note}

Each predictor was trained on slots of the encoder `{encoder}` of the training videos with {samples:,} windows
and the same optimiser, schedule and seeds. `oc-jepa` is C-JEPA with nothing hidden of the history; `c-jepa-<n>` differs
in nothing but n hidden objects, `-upto` in every number up to n, by chance; `-weighted` recovers these with a tenth of
the weight, and what they do later counts nothing. Scored are {scenes} scenes of the {split}
split: each is predicted from its beginning, as it is and once without each object (`removal={removal}`; `empty` for
systems that tell slots apart, as `oc-dino-wm`), and compared with the physics run again; *downstream* is the observed
video with only what the removal changes predicted (`cjepa_agent.video_prediction.downstream`).{asking}

Errors are mean distances of objects from where they truly are, in object radii: with nothing removed, of those objects
that a removal influences, and of these downstream. F1 is of pairs that collide after a removal; *where it influences*
leaves out removals that change no other object's course. Questions are answered from predicted collisions, without
ALOE, per question. 95 % intervals treat scenes, not what is in one scene, as independent. AUROC of attention is
explained under *Who depends on whom*. Where ALOE was trained, too (`aloe_seeds`), it read counterfactual questions from
the video predicted without the object, in training and here. *Published* is C-JEPA's paper (arXiv 2602.11389),
predictive / counterfactual: CLEVRER's own videos, and counterfactual questions that read no predicted frame.

With `predictor=clevrer`, the default, C-JEPA sees each slot's last change beside the slot (`predictor.motion`), which
the paper's does not, and learns 10 frames per window. SlotFormer, OCVP-Seq and OC-DINO-WM see slots alone and predict
one frame per call; the first two also learn from rollouts of 16 frames, as published but of a quarter of the windows,
OC-DINO-WM from true frames before each. An object that enters late is scored from the next call on: with one frame per
call sooner, so that errors and influence of these three are of slightly more objects and frames (3 %).

By system, means over training seeds:

{systems}

{contrast}

In the same scenes {references}

![Error of positions over the frames of the video]({figure})

Above: error over the frames of the video, mean over training seeds, of objects that the removal influences; dashed,
downstream; dotted, with nothing removed; grey, predicting that the removal changes nothing.

{influence}## Each training

{trainings}
"""

INFLUENCE = """## Who depends on whom

Of all pairs of an object and another that is removed, a share of {influenced:.3f} is truly influenced. Three scores
should tell which: by how much a removal moves the other object in the prediction (*shift*), when the predictions with
and without it part in the observed video (*parting*), and how much the other object attends to it (sum over key times,
mean over layers, heads and query times). Area under the ROC curve, chance is 0.5, and average precision (AP), chance is
that share; means over training seeds, over the same scenes as above:

{table}

![What attention tells, by layer and head]({picture})

Above: area under the ROC curve of the attention of each head, a dot per head and training seed; the line is the mean
over heads, the dashed line is chance.

"""


def title(entries: Sequence[Mapping[str, Any]], privileged: bool, steps: int) -> str:
    """What tells a page from those of other settings."""
    slots = "Slots of the true state" if privileged else "Slots of pictures"
    return f"{slots}, {steps:,} steps{', read by ALOE' if any(entry['aloe'] for entry in entries) else ''}"


def note(entries: Sequence[Mapping[str, Any]]) -> str:
    """What is to be known of results of older versions."""
    texts = []
    if any(INFLUENTIAL not in entry["collision_pairs"] for entry in entries):
        texts.append(
            " Some rows were scored before a correction of the collision read-out's labels, which moved single figures "
            "of other predictors by up to 4.3 points (LOG.md, *short trainings and moving averages*)."
        )
    if any("readouts_fitted_on" not in entry for entry in entries):
        texts.append(
            " Downstream videos, and what comes next, were in some rows read by a read-out fitted on predictions from "
            "the beginning, too, which tells less of them than that of now (LOG.md, *a read-out for "
            "videos that go on*)."
        )
    return "".join(texts)


def asking(keep: int, every: int) -> str:
    """How predictors are asked, where that is not call after call for all frames that they give."""
    kept = f" Of the frames of each call {keep} are kept (`keep={keep}`) before the next begins." if keep else ""
    asked = f" What a removal changes is asked every {every} steps (`every={every}`)." if every else ""
    return kept + asked


def systems_table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, a line per system."""
    asked = _asked(entries)
    header = ["system", "training seeds", "error, nothing removed", "of influenced", "downstream", "F1 of pairs"]
    header += [
        "F1 downstream",
        "where it influences",
        *(f"{kind}, %" for kind in asked),
        "counterfactual downstream, %",
    ]
    header += [*(f"{kind} by ALOE, %" for kind in _by_aloe(entries[0])), "AUROC of attention", "published"]
    return header, [_means(name, own, asked) for name, own in _by_system(entries).items()]


def _by_system(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(entry["system"], []).append(entry)
    return by_name


def influence_table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, a line per system: what tells true influence, and how well."""
    header = ["system", "training seeds"]
    header += [f"{measure} of {name}" for name in INFLUENCE_SCORES for measure in INFLUENCE_MEASURES.values()]
    paths = [("influence", score, measure) for score in INFLUENCE_SCORES.values() for measure in INFLUENCE_MEASURES]
    lines = [
        [system, str(len(own)), *_rounded([_mean(own, *path) for path in paths], 3)]
        for system, own in _by_system(entries).items()
    ]
    return header, lines


def influence_section(entries: Sequence[Mapping[str, Any]], picture: Path) -> str:
    """What tells true influence, and its picture beside the page; empty where no pair or every pair is influenced."""
    if not all(entry["influence"] for entry in entries):
        return ""
    draw_attention(entries, picture)
    return INFLUENCE.format(
        influenced=entries[0]["influence"]["influenced"],
        table=markdown_table(*influence_table(entries)),
        picture=picture.name,
    )


def _asked(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [kind for kind, scores in entries[0]["questions"].items() if scores]


def _means(name: str, entries: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> list[str]:
    errors = [
        _mean(entries, "position_error_radii", group, source, "mean")
        for group, source in (("factual", "predicted"), ("influenced", "predicted"), ("influenced", "downstream"))
    ]
    pairs = [_mean(entries, "collision_pairs", when, source, "F1") for when, source in PAIRS]
    right = [_mean(entries, "questions", kind, "predicted", "mean") for kind in asked]
    right.append(_mean(entries, "questions", "counterfactual", "downstream", "mean"))
    by_aloe = [100 * float(np.mean([_by_aloe(e)[kind] for e in entries])) for kind in _by_aloe(entries[0])]
    return [
        name,
        str(len(entries)),
        *_rounded(errors, 2),
        *_rounded(pairs, 3),
        *_rounded([*right, *by_aloe], 1),
        *_rounded([_mean(entries, "influence", "attention, mean", "AUROC")], 3),
        " / ".join(f"{share:.2f}" for share in PUBLISHED.get(name, ())),
    ]


def _mean(entries: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """Over trainings, of what lies at a path of keys; None where one of them has nothing there."""
    found = [_at(entry, path) for entry in entries]
    return None if None in found else float(np.mean(found))


def _at(entry: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What lies at a path of keys, None where it ends before."""
    value: Any = entry
    for key in path:
        value = value.get(key) if value else None
    return value


def _rounded(values: Sequence[float | None], digits: int) -> list[str]:
    return ["" if value is None else f"{value:.{digits}f}" for value in values]


def trainings_table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, a line per training."""
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
        "where it influences": _rounded([_at(pairs, (INFLUENTIAL, "downstream", "F1"))], 3)[0],
        **{f"{kind}, %": interval_text(scores["predicted"], 1) for kind, scores in questions.items() if scores},
        **{
            f"{kind} downstream, %": interval_text(scores["downstream"], 1)
            for kind, scores in questions.items()
            if scores and kind == "counterfactual"
        },
        **{f"{kind} by ALOE, %": f"{100 * share:.1f}" for kind, share in _by_aloe(entry).items()},
        **{
            f"AUROC of {name}": f"{influence[score]['AUROC']:.3f}" if score in influence else ""
            for name, score in INFLUENCE_SCORES.items()
        },
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
    where = _at(pairs, (INFLUENTIAL, "unchanged", "F1"))
    parts = [
        f"predicting that a removal changes nothing has an error of {unchanged} and an F1 of "
        f"{pairs['after_removal']['unchanged']['F1']:.3f}{f' ({where:.3f} where it influences)' if where else ''}",
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
                asked = own[seeds[0]]["asked_aloe" if reader == "ALOE" else "asked"][kind]
                scenes = np.arange(len(asked)).repeat(list(asked.values()))
                points = points_text(paired_difference(right, without, seed, scenes))
                lines.append([name, kind, reader, str(len(seeds)), points])
    if not lines:
        return ""
    header = ["system", "questions", "read by", "training seeds", "points against nothing hidden"]
    note = "Intervals are of scenes drawn with replacement; they do not cover the training's randomness."
    return f"{markdown_table(header, lines)}\n\n{note}"


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Errors over the frames of the video, a colour per system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()

    def course(own: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
        rows = np.array([errors[name] for errors in own], float)  # frames without an object are NaN
        return np.ma.masked_invalid(rows).mean(axis=0).filled(np.nan)  # type: ignore[no-any-return]

    for number, (name, trainings) in enumerate(_by_system(entries).items()):
        own, colour = [entry["position_error_by_frame"] for entry in trainings], f"C{number}"
        axes.plot(course(own, "influenced, predicted"), color=colour, label=name)
        axes.plot(course(own, "influenced, downstream"), "--", color=colour)
        axes.plot(course(own, "factual, predicted"), ":", color=colour)
    axes.plot(course([entries[0]["position_error_by_frame"]], "influenced, unchanged"), color="0.6", label="unchanged")
    axes.set_xlabel("frame")
    axes.set_ylabel("error [radii]")
    axes.grid(True, alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def draw_attention(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How well each head's attention tells true influence, a panel per system that tells what it attends to."""
    from matplotlib.figure import Figure

    panels = {name: dots for name, own in _by_system(entries).items() if (dots := _heads(own)).size}
    columns = min(5, max(1, len(panels)))
    rows = math.ceil(max(1, len(panels)) / columns)
    figure = Figure(figsize=(1 + 1.8 * columns, 0.6 + 2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for (name, (layers, scores)), panel in zip(panels.items(), axes[: len(panels)], strict=True):
        depth = np.unique(layers)
        panel.axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
        panel.plot(depth, [scores[layers == layer].mean() for layer in depth], color="C0", linewidth=0.8)
        panel.plot(layers, scores, "o", color="C0", markersize=3, alpha=0.5)
        panel.set_title(name, fontsize=9)
        panel.set_xticks(depth)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("AUROC", fontsize=9)
    write_figure(path, figure)


def _heads(entries: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Layer and area under the ROC curve (2, M) of each head of each training."""
    return np.array(
        [
            (int(found[1]), score["AUROC"])
            for entry in entries
            for name, score in entry["influence"].items()
            if (found := HEAD.fullmatch(name))
        ]
    ).T
