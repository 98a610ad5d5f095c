"""A small predictor of CLEVRER videos with random weights."""

from __future__ import annotations

import torch

from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig

CONFIG = WorldModelConfig(
    encoder=EncoderConfig(kind="clevrer_state", n_slots=7),
    predictor=PredictorConfig(depth=2, width=32, heads=2, mlp=32, history=3, future=4),
    proprio_dim=0,
    env_action_dim=0,
    action_block=2,
)


def random_model() -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(CONFIG)
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
