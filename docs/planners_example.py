"""Every planner on dynamics of one's own: a cart drives around a pillar. Takes seconds on a CPU.

Run ``python docs/planners_example.py``. Only ``step`` and ``cost`` are particular to the cart; a cost function may
call any model in their place.
"""

import time

import torch
from torch import Tensor

from planners import (
    CEM,
    ICEM,
    MPPI,
    ActionPrior,
    CEMConfig,
    Chain,
    GradientConfig,
    GradientPlanner,
    ICEMConfig,
    MPPIConfig,
    Planner,
    RandomShooting,
    RecedingHorizon,
    RecedingState,
)

SECONDS = 0.2  # per step
LIMIT = torch.tensor([1.0, 2.0])  # m/s and rad/s


def step(state: Tensor, command: Tensor) -> Tensor:
    """State (..., 3) of x, y (metres) and heading (radians) after a command (..., 2) of speed and turn rate."""
    x, y, heading = state.unbind(-1)
    speed, turn = command.unbind(-1)
    heading = heading + SECONDS * turn
    return torch.stack([x + SECONDS * speed * heading.cos(), y + SECONDS * speed * heading.sin(), heading], dim=-1)


def cost(start: Tensor, goal: Tensor, commands: Tensor) -> Tensor:
    """Of B starts (B, 3), goals (B, 2) and N plans each (B, N, H, 2): costs (B, N), lower is better."""
    state = start[:, None].expand(-1, commands.shape[1], -1)
    total = 1e-3 * commands.square().sum((-1, -2))
    for command in commands.unbind(2):
        state = step(state, command)
        total = total + 10 * (0.6 - state[..., :2].norm(dim=-1)).clamp(min=0)  # a pillar of 0.6 m at the origin
    return total + (state[..., :2] - goal[:, None]).square().sum(-1)


def planners_to_compare() -> dict[str, Planner[Tensor, Tensor]]:
    """One of each; all score about 3,000 plans per cart."""
    prior = ActionPrior.standard(-LIMIT, LIMIT, std=LIMIT / 2)
    quick = CEM(cost, prior, CEMConfig(n_samples=100, n_iterations=10, n_elites=10))
    return {
        "random shooting": RandomShooting(cost, prior),
        "CEM": CEM(cost, prior, CEMConfig(n_samples=150, n_iterations=20, n_elites=15)),
        "iCEM": ICEM(cost, prior, ICEMConfig(n_samples=300, n_iterations=20, n_elites=15, decay=1.1)),
        "MPPI": MPPI(cost, prior, MPPIConfig(n_samples=250, n_iterations=12, n_elites=50)),
        "gradient": GradientPlanner(cost, prior, GradientConfig(n_restarts=60, n_iterations=50)),
        "CEM, then gradient": Chain(quick, GradientPlanner(cost, prior, GradientConfig(n_restarts=40, init_std=0.2))),
    }


def compare() -> dict[str, Tensor]:
    """Costs (B,) of each planner's plans for three carts at once."""
    starts = torch.tensor([[-2.0, 0.0, 0.0], [-1.5, 1.0, 0.0], [0.0, -2.0, 1.5]])
    goals = torch.tensor([[1.5, 0.0], [1.0, -1.0], [0.0, 1.5]])
    costs = {}
    for name, planner in planners_to_compare().items():
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        begin = time.perf_counter()
        costs[name] = planner.plan(starts, goals, horizon=20, generators=generators).cost
        print(f"{name:20} mean cost {costs[name].mean():.4f}  {1000 * (time.perf_counter() - begin):5.0f} ms")
    return costs


def drive(steps: int = 26) -> Tensor:
    """Where a cart ends, (2,), that plans anew after every second step, each time from what is left of its plan."""
    planner, control, carried = planners_to_compare()["iCEM"], RecedingHorizon(20, 2, True, 8), RecedingState()
    state, goal, generator = torch.tensor([-2.0, 0.0, 0.0]), torch.tensor([1.5, 0.0]), torch.Generator().manual_seed(0)
    while carried.executed < steps:
        plan = planner.plan(
            state[None],
            goal[None],
            horizon=control.next_horizon(carried),
            generators=[generator],
            warm_start=control.warm_start(carried, torch.zeros(2))[None],
        )
        commands, carried = control.hand_out(carried, plan.actions[0])
        for command in commands:
            state = step(state, command)
    return state[:2]


if __name__ == "__main__":
    compare()
    print("driven, replanning every second step, to", [round(float(number), 2) for number in drive()])
