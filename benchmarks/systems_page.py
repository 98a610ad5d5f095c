"""The page of ``benchmarks.systems``: a table, contrasts and a picture of what it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.predictors import UNMASKED_SYSTEM
from benchmarks.report import Report, markdown_table, write_figure
from cjepa_agent.intervals import paired_difference, points_text

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
CONTRASTS = """

The same pairs solved more, in points against `oc-jepa` of the same training seeds, with bootstrap 95 %
intervals of the pairs:

{table}"""
SECTION = """## Equal {what}

Settings, machine and all figures are in `{source}`.{averages}

{table}{contrasts}

![success]({picture})"""


def section(what: str, report: Report, order: Sequence[str], seed: int, page: Path) -> str:
    """The part of the page about one file, and its picture beside the page.

    Args:
        what: all systems were given as much of.
        report: the file.
        order: of the systems; others follow.
        seed: of the pairs that intervals draw.
        page: the file that the part is for.
    """
    entries = report.trainings(order)
    picture = page.with_name(f"{page.stem}_{what}.png")
    draw(entries, picture)
    return SECTION.format(
        what=what,
        source=report.source,
        averages=report.averages,
        table=markdown_table(*table(entries)),
        contrasts=contrasts(entries, seed),
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
