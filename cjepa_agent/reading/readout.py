"""Read-outs of frozen slots: linear ones, and small MLPs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, BATCH, WIDTH = 4000, 512, 128
Loss = Callable[[Tensor, Tensor], Tensor]


def fit_linear(inputs: Tensor, outputs: Tensor) -> nn.Linear:
    """Least squares with intercept from (M, F) to (M, O)."""
    extended = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    gram = extended.T @ extended + 1e-4 * torch.eye(extended.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, extended.T @ outputs.double()).float()
    layer = nn.Linear(*solution[:-1].shape).requires_grad_(False)
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])
    return layer


def fit_mlp(
    inputs: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    outputs: int | None = None,
    loss: Loss = F.mse_loss,
    weight_decay: float = 0.0,
) -> nn.Module:
    """A two-layer MLP, trained with Adam and a cosine schedule.

    Args:
        inputs: (M, F).
        targets: (M, O).
        generator: of the batches; its seed is also that of the initial weights.
        outputs: numbers that the MLP gives for each row, None for O.
        loss: of what it gives for some rows, and their targets.
        weight_decay: as of AdamW.
    """
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        model = nn.Sequential(
            nn.Linear(inputs.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, outputs or targets.shape[1]),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        error = loss(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)
