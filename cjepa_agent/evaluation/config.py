"""Settings of ``python -m cjepa_agent.evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from cjepa_agent.planning import PlannerSettings, RuleObjectives
from cjepa_agent.provenance import settings_record
from cjepa_agent.video_prediction import Removal
from envs.pusht.success import success_rule

TASKS = ("planning", "released", "coverage", "probe", "segmentation", "rollout", "intervention", "vqa")


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores an agent on Push-T, or answers to CLEVRER's questions: a table, JSON, CSV, and one HTML page of all.

    Attributes:
        task: ``planning`` (reach the state 25 steps later of a held-out episode, within a budget), ``coverage``
            (from random starts to the fixed goal), ``probe`` (what the slots encode), ``released``: planning by the
            protocol of the paper's numbers, with its known flaws named (give ``planner=full`` and ``data``),
            ``segmentation`` (whether slots of CLEVRER videos hold one object each), ``rollout`` (how far predicted
            CLEVRER objects are from the true ones), ``intervention`` (what would happen without an object, against the
            physics run again), or ``vqa`` (CLEVRER's questions).
        weights: checkpoint: a folder, a Hub id, or a bundled one, such as ``pusht``, or ``clevrer`` for
            ``task=intervention``; for ``task=vqa`` the folder ``checkpoint`` of ``train stage=vqa``, or the bundled
            ``clevrer-aloe`` (slots of the true state), ``clevrer-aloe-predicted`` (the same, continued by
            ``clevrer-state``) or ``clevrer-aloe-pixels`` (of ``encoder=clevrer``).
        planner: how the agent plans.
        objectives: what its plans are judged by; ``task=released`` takes the paper's, all slots and proprioception.
        rules: success rules of ``task=planning``.
        episodes: per rule, taken evenly from the manifests of ``seeds``, or seeds of ``task=coverage``, or scenes of
            ``task=segmentation``, ``rollout``, ``intervention`` and ``vqa``, from the first; null means 20, 50 for
            coverage and for each seed of ``task=released``, 100 for segmentation, else all scenes.
        baselines: whether ``task=planning`` also scores doing nothing and random actions.
        oracle_episodes: of these, how many the same search also plans with the true simulator; 0 for none.
        budget: environment steps per episode; null means 50, or 300 for coverage.
        seeds: manifests to take pairs from, or of the draws of ``task=released``; null means 0, 1, 42, or 0, 1, 2.
        split: part of the dataset that the pairs are from; ``validation`` for tuning.
        manifests: folder with manifests; empty means those of the package.
        data: HDF5 file of episodes for ``task=probe`` and ``released``, CLEVRER data set for ``segmentation``,
            ``rollout``, ``intervention`` and ``vqa``; empty means the cache's.
        slots: folder of the videos' slots for ``task=vqa``, ``intervention`` and ``segmentation``, of those that
            ``python -m cjepa_agent.rollout`` wrote for ``task=rollout``; empty means the cache's.
        foreign_slots: whether ``task=vqa`` may read slots that another encoder or predictor made than those which the
            model learned from.
        intervened: folder of predictions without each object, which counterfactual questions of ``task=vqa`` read in
            place of the observed video; empty for none.
        starts: times that ``task=vqa`` reads every video, each from another start, and adds what it reads out; once, as
            published, leaves the frames between those of one stride unread.
        removal: how ``task=intervention`` takes an object away: ``drop`` leaves its slot out of the attention,
            ``empty`` puts an empty slot of ``encoder=state`` in its place, ``mask`` hides it in all frames.
        keep: frames of each call of the predictor that ``task=intervention`` keeps; 0 for all.
        every: steps from which to which ``task=intervention`` asks what a removal changes of the observed video, see
            ``python -m cjepa_agent.rollout``; 0 for as many as are kept.
        against: ``vqa.json`` of another evaluation of ``task=vqa`` with the same questions, to compare answers with.
        submission: answers to score with ``task=vqa`` instead of a model's, a file in CLEVRER's form.
        batch: episodes in lockstep; no effect on results on the CPU, on a GPU more are faster.
        videos: episodes of the agent to film per rule.
        device: ``cpu`` or ``cuda``; ``task=probe``, ``segmentation`` and ``rollout`` run on the CPU.
        seed: of planners, random policies, and read-outs of slots.
        out: folder for JSON, CSV and HTML.
        video_folder: folder for MP4 files.
    """

    PRESETS: ClassVar[dict[str, str]] = {"planner": "fast"}

    task: str = "planning"
    weights: str = "pusht"
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    objectives: RuleObjectives = field(default_factory=RuleObjectives)
    rules: tuple[str, ...] = ("released", "moderate", "strict")
    episodes: int | None = None
    baselines: bool = True
    oracle_episodes: int = 10
    budget: int | None = None
    seeds: tuple[int, ...] | None = None
    split: str = "test"
    manifests: str = ""
    data: str = ""
    slots: str = ""
    foreign_slots: bool = False
    intervened: str = ""
    starts: int = 1
    removal: Removal = "drop"
    keep: int = 0
    every: int = 0
    against: str = ""
    submission: str = ""
    batch: int = 4
    videos: int = 3
    device: str = "cpu"
    seed: int = 0
    out: str = "results"
    video_folder: str = "videos"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)}, got {self.task!r}")
        if self.removal not in get_args(Removal):
            raise ValueError(f"removal must be one of {list(get_args(Removal))}, got {self.removal!r}")
        if not self.rules or self.seeds == ():
            raise ValueError(f"rules and seeds must not be empty, got {self.rules} and {self.seeds}")
        if len(set(self.seeds or ())) < len(self.seeds or ()):
            raise ValueError(f"seeds must be given once each, got {list(self.seeds or ())}")
        for rule in self.rules:
            success_rule(rule)
        for name in ("episodes", "budget", "batch", "starts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("keep", "every", "oracle_episodes", "videos", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def record(self) -> dict[str, Any]:
        """All settings as they are written beside results."""
        return settings_record(self)
