"""All predictors, by kind: whatever chooses among them imports this; adding one is a line here."""

from __future__ import annotations

from typing import Any, get_args

from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.ocvp import OCVPConfig
from cjepa_agent.predictors.released import ReleasedPredictorConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from configs.kinds import of_kind

AnyPredictorConfig = PredictorConfig | OCDINOWMConfig | SlotFormerConfig | OCVPConfig | ReleasedPredictorConfig


def predictor_config(values: Any) -> AnyPredictorConfig:
    """The predictor configuration whose ``dataclasses.asdict`` these are; raises ValueError if none."""
    kinds: dict[str, type[AnyPredictorConfig]] = {kind.kind: kind for kind in get_args(AnyPredictorConfig)}
    # Checkpoints older than the other kinds tell none.
    return of_kind("predictor", kinds, values, PredictorConfig.kind)
