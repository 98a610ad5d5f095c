"""Settings as a command line gives them, by type and by kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.ocvp import OCVPConfig
from cjepa_agent.train import TrainConfig
from configs.command import build
from configs.presets import preset


@pytest.mark.parametrize(
    ("schema", "values", "message"),
    [
        (EvaluateConfig, {"rules": "released"}, r"rules is 'released'; expected a list, such as rules=\[released\]"),
        (EvaluateConfig, {"seeds": 0}, r"seeds is 0; expected a list, such as seeds=\[0\]"),
        (EvaluateConfig, {"seeds": ["a"]}, r"seeds is \('a',\); expected tuple\[int"),
        (EvaluateConfig, {"batch": "many"}, "batch is 'many'; expected int"),
        (EvaluateConfig, {"batch": True}, "batch is True; expected int"),
        (EvaluateConfig, {"planner": {"method": 1.5}}, "planner.method is 1.5; expected str"),
        (EvaluateConfig, {"planner": {"method": 3}}, "planner.method is '3'; expected .*icem"),
        (EvaluateConfig, {"task": "x"}, "task must be"),
        (EvaluateConfig, {"out": 5.5}, "out is 5.5; expected"),
        (TrainConfig, {"trainer": {"lr": float("nan")}}, "trainer.lr is nan; expected a finite number"),
        (TrainConfig, {"trainer": {"lr": "abc"}}, "trainer.lr is 'abc'; expected a finite number"),
        (TrainConfig, {"trainer": {"lr": True}}, "trainer.lr is True; expected a finite number"),
        (
            TrainConfig,
            {"mask": {"kind": "all"}},
            r"mask.kind is 'all'; expected one of \['object', 'token', 'tube', 'fixed'\]",
        ),
        (TrainConfig, {"encoder": {"kind": "slots", "width": 1.5}}, 'encoder: .*"width" - should be "int"'),
    ],
)
def test_values_that_do_not_fit_are_named(schema: type[Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(schema, OmegaConf.create(values))


def test_values_that_fit() -> None:
    assert build(EvaluateConfig, OmegaConf.create({"seeds": [3, 4]})).seeds == (3, 4)
    config = build(TrainConfig, OmegaConf.create({"out": 5, "init": 7, "trainer": {"lr": 1}}))
    assert config.out == Path("5") and str(config.init) == "7" and isinstance(config.trainer.lr, float)


def test_a_preset_is_of_its_kind() -> None:
    assert isinstance(preset(OCVPConfig, "predictor", "ocvp_paper"), OCVPConfig)
    with pytest.raises(ValueError, match="preset 'ocvp_paper' is of the kind 'ocvp', not PredictorConfig"):
        preset(PredictorConfig, "predictor", "ocvp_paper")
