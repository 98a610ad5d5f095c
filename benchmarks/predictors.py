"""The predictors that benchmarks compare, by name: an architecture, and what is hidden from it while it trains."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, cast

from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import CONFIG
from cjepa_agent.encoders.patches import PatchTokenConfig
from cjepa_agent.predictors.base import TransformerConfig
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.masking import MaskConfig, MaskKind
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.ocvp import OCVPConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.train import TrainConfig
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.image_loss import drawn_size
from configs.presets import preset

UNMASKED = MaskConfig(count=0)
# In the paper's loss the 5 hidden cells of an object in CLEVRER's history of 6 frames weigh as much as the 70 of 7
# slots in 10 future frames; with this weight about as much as 5 of these.
WEIGHTED_HISTORY = 0.1
IMAGE_WEIGHT = 4.0  # published for SlotFormer and OCVP is 1, of colours in -1..1, not 0..1
ROLLED_WINDOWS = 8  # per step; those of all 32 would take as long as 15 of C-JEPA's steps
UNMASKED_SYSTEM = "oc-jepa"  # what all others are compared with


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
        name: see ``benchmarks.systems.SystemsBenchmark.systems``.
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
