"""A checkpoint that is small and random: fast, and as strict about its inputs as a trained one."""

from dataclasses import replace

import torch

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.planning import PlannerSettings
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from planners import ActionPrior, CEMConfig, RecedingHorizon

CONFIG = WorldModelConfig(
    encoder=EncoderConfig(n_slots=3, slot_dim=20, width=8, iterations=1, decoder_width=8),
    predictor=PredictorConfig(depth=2, width=16, heads=2, mlp=32, history=3),
    roles={"agent": 0, "block": 2},
)
SETTINGS = PlannerSettings(
    cem=CEMConfig(n_samples=6, n_iterations=2, n_elites=3),
    receding=RecedingHorizon(horizon=3, replan_every=1, shrink=True, min_horizon=1),
)


def tiny_checkpoint(seed: int = 0, predictor: AnyPredictorConfig = CONFIG.predictor) -> Checkpoint:
    """Random weights and statistics."""
    torch.manual_seed(seed)
    model = WorldModel(replace(CONFIG, predictor=predictor)).eval()
    for buffer in model.processor.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    blocks = 0.2 * torch.randn(200, CONFIG.action_dim)
    limit = torch.ones(CONFIG.action_dim)
    return Checkpoint(model, ActionPrior.fit(blocks, -limit, limit), {"data": "random", "steps": 0}, "1.2.3", "abc")
