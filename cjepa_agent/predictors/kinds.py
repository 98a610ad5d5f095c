"""All predictors, by kind: whatever chooses among them imports this; adding one is a line here."""

from __future__ import annotations

from typing import Any, get_args

from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.ocvp import OCVPConfig
from cjepa_agent.predictors.released import ReleasedPredictorConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig

AnyPredictorConfig = PredictorConfig | OCDINOWMConfig | SlotFormerConfig | OCVPConfig | ReleasedPredictorConfig


def predictor_config(values: dict[str, Any]) -> AnyPredictorConfig:
    """The predictor configuration whose ``dataclasses.asdict`` these are; raises TypeError or ValueError if none."""
    kinds: dict[Any, type[AnyPredictorConfig]] = {kind.kind: kind for kind in get_args(AnyPredictorConfig)}
    name = values.get("kind", PredictorConfig.kind)  # checkpoints older than the other kinds have none
    if name not in kinds:
        raise ValueError(f"predictor.kind is {name!r}; expected one of {list(kinds)}")
    return kinds[name](**values)
