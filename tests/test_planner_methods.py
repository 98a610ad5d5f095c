"""What distinguishes the planners, and what they have in common beside the search of each."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planner_problems import A, H, Start, assert_same_plan, box, network_cost, part, quadratic, seeded
from scipy import stats
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
    PlanResult,
    RandomShooting,
    RandomShootingConfig,
    in_chunks,
)
from planners.noise import colour, truncate

pytestmark = pytest.mark.usefixtures("one_thread")

WILLIAMS = MPPIConfig(100, 8, 100, init_std=0.3, min_std=0.0, temperature=0.02, normalise=False, refit_std=False)
STOPPING = CEMConfig(40, 12, 8, noise_beta=1.5, keep_elites=0.5, decay=1.2, bounds="truncate", tolerance=0.25)
PLANNERS: dict[str, Callable[[Any, ActionPrior], Planner[Any, Any]]] = {
    "cem": lambda cost, prior: CEM(cost, prior, CEMConfig(80, 15, 10)),
    "icem": lambda cost, prior: ICEM(cost, prior, ICEMConfig(80, 15)),
    "mppi": lambda cost, prior: MPPI(cost, prior, MPPIConfig(100, 10, 30, min_std=0.0)),
    "mppi of Williams": lambda cost, prior: MPPI(cost, prior, WILLIAMS),
    "gradient": lambda cost, prior: GradientPlanner(cost, prior, GradientConfig(4, 60, noise_std=0.01)),
    "random": lambda cost, prior: RandomShooting(cost, prior, RandomShootingConfig(1000)),
    "stopping": lambda cost, prior: CEM(cost, prior, STOPPING),
    "chain": lambda cost, prior: Chain(
        CEM(cost, prior, CEMConfig(20, 3, 5)), GradientPlanner(cost, prior, GradientConfig(4, 30, init_std=0.1))
    ),
}
every_planner = pytest.mark.parametrize("name", PLANNERS)


class Recorder:
    """A cost function that remembers what it was asked."""

    def __init__(self, cost: Any = quadratic) -> None:
        self.cost, self.actions = cost, list[Tensor]()

    def __call__(self, z0: Any, goal: Any, actions: Tensor) -> Tensor:
        self.actions.append(actions.detach())
        return self.cost(z0, goal, actions)


# --- What all planners promise ----------------------------------------------------------------------------------------


@every_planner
def test_the_optimum_is_found_inside_and_at_the_bounds(name: str) -> None:
    goal = torch.tensor([[[0.4, -0.3]], [[0.2, 1.7]]])
    recorder = Recorder()
    plan = PLANNERS[name](recorder, box(width=2, std=0.7)).plan(None, goal, horizon=1, generators=seeded(2))
    rough = name in ("random", "mppi of Williams", "stopping")
    assert torch.allclose(plan.actions, goal.clamp(-1, 1), atol=0.15 if rough else 0.02)
    assert torch.allclose(plan.cost, quadratic(None, goal, plan.actions.unsqueeze(1))[:, 0], atol=1e-5)
    assert all((actions.abs() <= 1).all() for actions in recorder.actions)
    assert not plan.actions.requires_grad and not plan.cost.requires_grad


@every_planner
def test_an_environment_alone_equals_itself_in_a_batch_of_eight_to_the_last_bit(name: str) -> None:
    data = torch.Generator().manual_seed(1)
    latent, target = torch.randn(8, 7, generator=data), torch.randn(8, 19, generator=data) / 4
    warm = torch.rand(8, H, A, generator=data) - 0.5
    mixed = ActionPrior(torch.zeros(A), torch.randn(A, 3, generator=data), -torch.ones(A), torch.ones(A))
    prior = box(std=0.5) if name == "stopping" else mixed
    planner = PLANNERS[name](in_chunks(network_cost()), prior)

    def solve(chosen: slice, generators: list[torch.Generator]) -> PlanResult:
        start, goal = Start(latent[chosen], "any"), {"latent": target[chosen]}
        return planner.plan(start, goal, horizon=H, generators=generators, warm_start=warm[chosen])

    generators, own_generators = seeded(8), seeded(8)
    together = solve(slice(0, 8), generators)
    for chosen in (slice(0, 1), slice(1, 4), slice(4, 8)):
        own = solve(chosen, own_generators[chosen])
        assert_same_plan(own, part(together, chosen, len(own.statistics.best)))
    for one, other in zip(generators, own_generators, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@every_planner
def test_a_warm_start_is_scored_as_it_is_and_kept_where_nothing_is_better(name: str) -> None:
    recorder, goal = Recorder(), torch.full((2, H, A), 0.31)
    planner = PLANNERS[name](recorder, box(std=0.5))
    plan = planner.plan(None, goal, horizon=H, generators=seeded(2), warm_start=goal)
    assert torch.allclose(recorder.actions[0][:, 0], goal, atol=1e-6)
    assert (plan.statistics.best[0] < 1e-10).all()
    if name in ("icem", "gradient", "random"):  # the others return a mean
        assert (plan.cost < 1e-10).all()


@every_planner
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_candidates_of_non_finite_cost_lose(name: str, bad: float) -> None:
    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        return torch.where(actions[..., 0].amin(-1) < 0.1, bad, quadratic(z0, goal, actions))

    goal = torch.full((1, 1, 2), 0.4)
    plan = PLANNERS[name](cost, box(width=2)).plan(None, goal, horizon=1, generators=seeded(1))
    assert torch.allclose(plan.actions, goal, atol=0.25)
    assert plan.cost.isfinite().all()


@every_planner
def test_bad_requests_and_answers_are_one_clear_error(name: str) -> None:
    def broken(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        return quadratic(z0, goal, actions) + z0[:, None]

    def plan(cost: Any, z0: Any = None, **request: Any) -> None:
        request = {"horizon": H, "generators": seeded(2)} | request
        PLANNERS[name](cost, box()).plan(z0, torch.zeros(2, H, A), **request)

    with pytest.raises(ValueError, match=r"environment\(s\) \[1\] had a NaN or infinite cost"):
        plan(broken, torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"returned shape .*; expected \(B, N\)"):
        plan(lambda z0, goal, actions: actions.sum(-1))
    with pytest.raises(ValueError, match="costs on meta for actions on cpu"):
        plan(lambda z0, goal, actions: actions.sum((-1, -2)).to("meta"))
    with pytest.raises(ValueError, match="horizon is 0"):
        plan(quadratic, horizon=0)
    with pytest.raises(ValueError, match="warm_start is on meta"):
        plan(quadratic, warm_start=torch.zeros(2, H, A, device="meta"))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (CEMConfig, {"noise_beta": -1.0}, "noise_beta is -1"),
        (CEMConfig, {"keep_elites": 1.5}, "keep_elites is 1.5"),
        (CEMConfig, {"decay": 0.9}, "decay is 0.9"),
        (CEMConfig, {"bounds": "fold"}, "bounds is 'fold'"),
        (CEMConfig, {"tolerance": float("nan")}, "tolerance is nan"),
        (CEMConfig, {"tolerance": 0.1, "min_std": 0.1}, "tolerance is 0.1; expected .* more than min_std = 0.1"),
        (CEMConfig, {"time_budget_ms": 0.0}, "time_budget_ms is 0"),
        (ICEMConfig, {"n_samples": 9}, "n_elites is 10; expected 2 to n_samples = 9"),
        (MPPIConfig, {"n_samples": 63}, "n_elites is 64; expected 2 to n_samples = 63"),
        (MPPIConfig, {"temperature": 0.0}, "temperature is 0"),
        (RandomShootingConfig, {"n_samples": 1}, "n_samples is 1"),
        (RandomShootingConfig, {"std": 0.0}, "std is 0"),
        (GradientConfig, {"n_restarts": 0}, "n_restarts is 0"),
        (GradientConfig, {"n_iterations": 0}, "n_iterations is 0"),
        (GradientConfig, {"learning_rate": 0.0}, "learning_rate is 0"),
        (GradientConfig, {"init_std": float("nan")}, "init_std is nan"),
        (GradientConfig, {"noise_std": -1.0}, "noise_std is -1"),
        (GradientConfig, {"time_budget_ms": -1.0}, "time_budget_ms is -1"),
    ],
)
def test_settings_out_of_range(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_the_example_drives_around_the_pillar() -> None:
    example = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "planners_example.py"))
    costs = example["compare"]()
    assert len(costs) == 6
    for name, cost in costs.items():
        assert (cost < (6 if name == "random shooting" else 1)).all(), name
    assert (example["drive"]() - torch.tensor([1.5, 0.0])).norm() < 0.3


# --- Noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 2.0, 3.5])
@pytest.mark.parametrize("horizon", [5, 16])
def test_coloured_noise_has_unit_variance_and_a_power_law_spectrum(horizon: int, beta: float) -> None:
    white = torch.randn(20_000, horizon, 2, generator=torch.Generator().manual_seed(0))
    noise = colour(white, beta).double().numpy()
    np.testing.assert_allclose(noise.var(0), 1, rtol=0.05)
    assert abs(np.corrcoef(noise[:, 0, 0], noise[:, 0, 1])[0, 1]) < 0.03  # coordinates stay independent
    power = (np.abs(np.fft.rfft(noise, axis=1)) ** 2).mean((0, 2))
    frequency = np.maximum(np.fft.rfftfreq(horizon), 1 / horizon)
    np.testing.assert_allclose(power / power[1], (frequency / frequency[1]) ** -beta, rtol=0.05)


def test_noise_over_a_single_step_or_without_colour_is_white() -> None:
    white = torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(colour(white, 2.0), white)
    assert torch.allclose(colour(white.view(10, 5, 3), 0.0), white.view(10, 5, 3), atol=1e-5)


def test_truncated_noise_has_the_truncated_normal_distribution() -> None:
    noise = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-0.5, 0.0, -torch.inf, -1000.0]), torch.tensor([2.0, 1000.0, 0.1, 1000.0])
    drawn = truncate(noise, low, high)
    assert ((drawn >= low) & (drawn <= high)).all()
    for column, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        assert stats.kstest(drawn[:, column].numpy(), stats.truncnorm(a, b).cdf).pvalue > 0.01
    assert torch.allclose(drawn[:, 3], noise[:, 3], atol=1e-5)


def test_truncation_draws_none_at_the_bounds_where_clipping_piles_up() -> None:
    # A coordinate per number, in another order and with a negative scale.
    basis = torch.tensor([[0.0, -0.8], [0.6, 0.0]])
    prior = ActionPrior(torch.tensor([0.1, 0.0]), basis, torch.tensor([-0.5, -1.0]), torch.tensor([0.3, torch.inf]))
    shares = {}
    for bounds in ("clip", "truncate"):
        recorder = Recorder()
        config = CEMConfig(500, 2, 20, bounds=bounds)  # type: ignore[arg-type]
        CEM(recorder, prior, config).plan(None, torch.full((1, H, 2), 2.0), horizon=H, generators=seeded(1))
        drawn = torch.cat(recorder.actions[:2], dim=1)
        assert ((drawn >= prior.low) & (drawn <= prior.high)).all()
        shares[bounds] = ((drawn == prior.low) | (drawn == prior.high)).float().mean()
    assert shares["clip"] > 0.2 and shares["truncate"] < 0.002


def test_truncation_needs_a_coordinate_per_number() -> None:
    for basis in (torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])):
        prior = ActionPrior(torch.zeros(2), basis, -torch.ones(2), torch.ones(2))
        with pytest.raises(ValueError, match="bounds='truncate' needs a prior"):
            CEM(quadratic, prior, CEMConfig(bounds="truncate"))


# --- Options of the sampling planners ---------------------------------------------------------------------------------


def test_the_population_shrinks_to_twice_the_elites() -> None:
    recorder = Recorder()
    config = ICEMConfig(100, 9, 10, decay=1.25)
    ICEM(recorder, box(), config).plan(None, torch.zeros(1, H, A), horizon=H, generators=seeded(1))
    assert [actions.shape[1] for actions in recorder.actions] == [100, 80, 64, 51, 40, 32, 26, 20, 20]
    assert [CEMConfig(10, 1, 8, decay=2.0).population(iteration) for iteration in range(3)] == [10, 10, 10]


def test_kept_elites_stand_again_without_being_scored_again() -> None:
    def rising(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        return quadratic(z0, goal, actions) + 100 * len(recorder.actions)

    recorder = Recorder(rising)
    goal, config = torch.full((2, H, A), 0.3), CEMConfig(30, 3, 6, keep_elites=1.0)
    plan = CEM(recorder, box(), config).plan(None, goal, horizon=H, generators=seeded(2))
    assert [actions.shape[1] for actions in recorder.actions] == [30, 30, 30, 1]
    # Whatever is drawn later costs more: the first elites stay, and so does what is fitted to them.
    assert torch.equal(recorder.actions[1][:, 0], recorder.actions[2][:, 0])
    assert torch.equal(plan.actions, recorder.actions[2][:, 0])
    for name in ("best", "elite", "spread"):
        rows = getattr(plan.statistics, name)
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_environments_stop_one_by_one_as_they_converge() -> None:
    def cost(blind: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        error = (actions - goal.unsqueeze(1)).square()
        return error[..., 0].sum(-1) + (1 - blind[:, None]) * error[..., 1:].sum((-1, -2))

    recorder, blind, goal = Recorder(cost), torch.tensor([0.0, 1.0, 0.0]), torch.full((3, H, A), 0.2)
    config = CEMConfig(60, 30, 8, tolerance=0.1)
    planner, generators, drawn = CEM(recorder, box(), config), seeded(3), seeded(3)
    together = planner.plan(blind, goal, horizon=H, generators=generators)
    rows = together.statistics.best.isfinite().sum(0)
    assert rows[1] == len(together.statistics.best) > rows[0]  # what does not matter to the cost converges late
    assert (together.statistics.best[rows[0] :, 0] == torch.inf).all()
    spread = together.statistics.spread[:, 0]
    assert spread[rows[0] - 2] > 0.1 >= spread[rows[0] - 1] == spread[-1]
    assert len(recorder.actions) == rows.max() + 1
    for env in range(3):
        own = slice(env, env + 1)
        alone = planner.plan(blind[own], goal[own], horizon=H, generators=drawn[own])
        assert len(alone.statistics.best) == rows[env]
        assert_same_plan(alone, part(together, own, int(rows[env])))
        assert torch.equal(generators[env].get_state(), drawn[env].get_state())
    unhurried = CEM(recorder, box(), replace(config, tolerance=0.0, n_iterations=int(rows[0])))
    plan = unhurried.plan(blind, goal, horizon=H, generators=seeded(3))
    assert torch.equal(plan.actions[0], together.actions[0])


@pytest.mark.parametrize(
    "planner",
    [
        lambda cost, budget: CEM(cost, box(), CEMConfig(20, 1000, 5, time_budget_ms=budget)),
        lambda cost, budget: GradientPlanner(cost, box(), GradientConfig(4, 1000, time_budget_ms=budget)),
    ],
)
def test_a_time_budget_ends_the_search_with_the_best_plan_so_far(planner: Any) -> None:
    def slow(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        time.sleep(0.02)
        return quadratic(z0, goal, actions)

    goal = torch.zeros(2, H, A)
    for budget, most_rows in ((1e-3, 1), (100.0, 5)):
        plan = planner(slow, budget).plan(None, goal, horizon=H, generators=seeded(2))
        assert 1 <= len(plan.statistics.best) <= most_rows
        assert torch.allclose(plan.cost, quadratic(None, goal, plan.actions.unsqueeze(1))[:, 0], atol=1e-5)
    assert_same_plan(
        *(
            CEM(quadratic, box(), CEMConfig(20, 3, 5, time_budget_ms=budget)).plan(
                None, goal, horizon=H, generators=seeded(2)
            )
            for budget in (None, 1e9)
        )
    )


# --- MPPI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n_elites", [80, 25])
def test_mppi_weights_by_exponentiated_cost(normalise: bool, n_elites: int) -> None:
    recorder, goal = Recorder(), torch.full((1, 1, 3), 0.5)
    config = MPPIConfig(80, 1, n_elites, temperature=0.7, normalise=normalise, min_std=0.0)
    plan = MPPI(recorder, box(3, limit=100.0), config).plan(None, goal, horizon=1, generators=seeded(1))
    x = recorder.actions[0][0, :, 0].double().numpy()
    costs = ((x - 0.5) ** 2).sum(1)
    elite = np.argsort(costs)[:n_elites]
    x, costs = x[elite], costs[elite]
    scale = 0.7 * costs.std(ddof=1) if normalise else 0.7
    weights = np.exp(-costs / scale) / np.exp(-costs / scale).sum()
    mean = weights @ x
    variance = weights @ (x - mean) ** 2 / (1 - (weights**2).sum())
    np.testing.assert_allclose(plan.actions[0, 0], mean, atol=1e-5)
    np.testing.assert_allclose(plan.statistics.spread[0, 0], np.sqrt(variance).mean(), rtol=1e-5)
    fixed = MPPI(quadratic, box(3, limit=100.0), replace(config, refit_std=False))
    same = fixed.plan(None, goal, horizon=1, generators=seeded(1))
    assert torch.equal(same.actions, plan.actions) and same.statistics.spread.item() == 1


def test_a_cold_mppi_moves_to_the_best_candidate_and_keeps_its_spread() -> None:
    config = MPPIConfig(50, 1, 50, temperature=1e-9, min_std=0.0)
    recorder, goal = Recorder(), torch.full((1, H, A), 0.5)
    plan = MPPI(recorder, box(limit=100.0), config).plan(None, goal, horizon=H, generators=seeded(1))
    best = quadratic(None, goal, recorder.actions[0]).argmin()
    assert torch.allclose(plan.actions[0], recorder.actions[0][0, best], atol=1e-6)
    assert plan.statistics.spread.item() == 1


def test_equal_costs_weigh_the_same() -> None:
    recorder = Recorder(lambda z0, goal, actions: actions.new_ones(actions.shape[:2]))
    config = MPPIConfig(50, 1, 50)
    plan = MPPI(recorder, box(limit=100.0), config).plan(None, None, horizon=H, generators=seeded(1))
    assert torch.allclose(plan.actions[0], recorder.actions[0][0].mean(0), atol=1e-6)


# --- Gradient, random shooting, chains --------------------------------------------------------------------------------


def test_the_gradient_planner_walks_as_adam_does() -> None:
    basis = torch.tensor([[1.0, 0.5], [0.0, 0.7], [-0.4, 0.2]])
    prior = ActionPrior(torch.full((3,), 0.1), basis, torch.full((3,), -9.0), torch.full((3,), 9.0))
    goal, start = torch.tensor([[[0.9, -0.8, 0.3]]]), torch.tensor([[[0.4, 0.0, 0.0]]])
    recorder = Recorder()
    planner = GradientPlanner(recorder, prior, GradientConfig(1, 12, learning_rate=0.3))
    planner.plan(None, goal, horizon=1, generators=seeded(1), warm_start=start)
    x = prior.encode(start[0, 0]).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.3)
    decline = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 12)
    for actions in recorder.actions:
        assert torch.allclose(actions[0, 0, 0], prior.mean + basis @ x.detach(), atol=1e-4)
        adam.zero_grad()
        (prior.mean + basis @ x - goal[0, 0]).square().sum().backward()
        adam.step()
        decline.step()
    assert len(recorder.actions) == 12


def test_a_plan_at_the_wrong_bound_can_leave_it() -> None:
    goal = torch.full((1, H, A), 0.5)
    planner = GradientPlanner(quadratic, box(), GradientConfig(1, 60, init_std=0.0))
    plan = planner.plan(None, goal, horizon=H, generators=seeded(1), warm_start=-torch.ones(1, H, A))
    assert torch.allclose(plan.actions, goal, atol=0.02)


def test_noise_parts_equal_restarts() -> None:
    goal, config = torch.zeros(2, H, A), GradientConfig(5, 4, init_std=0.0)
    without = GradientPlanner(quadratic, box(), config).plan(None, goal, horizon=H, generators=seeded(2))
    noisy = GradientPlanner(quadratic, box(), replace(config, noise_std=0.1))
    plan = noisy.plan(None, goal, horizon=H, generators=seeded(2))
    assert (without.statistics.spread == 0).all()
    assert (plan.statistics.spread[0] == 0).all() and (plan.statistics.spread[1:] > 0.05).all()


def test_a_restart_without_gradient_stays_and_the_others_go_on() -> None:
    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        bent = torch.where(actions[..., :1] > 0, actions[..., :1].sqrt(), actions[..., :1])  # NaN gradient below 0
        return quadratic(z0, goal, actions) + 0 * bent.sum((-1, -2))

    recorder, goal = Recorder(cost), torch.full((1, 1, 2), 0.4)
    planner = GradientPlanner(recorder, box(width=2), GradientConfig(8, 30))
    plan = planner.plan(None, goal, horizon=1, generators=seeded(1))
    assert torch.allclose(plan.actions, goal, atol=0.02)
    first, last = recorder.actions[0][0, :, 0, 0], recorder.actions[-1][0, :, 0, 0]
    assert (first < 0).any() and torch.allclose(first[first < 0], last[first < 0], atol=1e-5)


@pytest.mark.parametrize(
    "cost",
    [
        lambda z0, goal, actions: quadratic(z0, goal, actions).detach(),
        lambda z0, goal, actions: quadratic(z0, goal, actions.detach()) + torch.zeros(1, requires_grad=True),
    ],
)
def test_a_cost_without_gradient_is_refused(cost: Any) -> None:
    with pytest.raises(ValueError, match="no gradient in the actions; .* or plan with CEM"):
        GradientPlanner(cost, box()).plan(None, torch.zeros(1, H, A), horizon=H, generators=seeded(1))


def test_random_shooting_returns_the_cheapest_of_one_draw() -> None:
    recorder, goal = Recorder(), torch.full((2, H, A), 0.3)
    config = RandomShootingConfig(200, noise_beta=1.0)
    plan = RandomShooting(recorder, box(), config).plan(None, goal, horizon=H, generators=seeded(2))
    (actions,) = recorder.actions
    costs = quadratic(None, goal, actions)
    assert actions.shape[:2] == (2, 200)
    assert torch.equal(plan.cost, costs.amin(1))
    assert torch.equal(plan.actions, actions[torch.arange(2), costs.argmin(1)])


def test_a_chain_hands_plans_on_and_returns_the_cheapest() -> None:
    goal = torch.full((2, H, A), 0.4)
    sampled = CEM(quadratic, box(), CEMConfig(20, 2, 5, returns="best"))
    recorder = Recorder()
    careless = CEM(recorder, box(), CEMConfig(20, 1, 20))  # whose mean is worse than what it starts from
    alone = sampled.plan(None, goal, horizon=H, generators=seeded(2))
    plan = Chain(sampled, careless).plan(None, goal, horizon=H, generators=seeded(2))
    assert torch.allclose(recorder.actions[0][:, 0], alone.actions, atol=1e-6)
    assert (quadratic(None, goal, recorder.actions[-1])[:, 0] > alone.cost).all()
    assert torch.equal(plan.actions, alone.actions) and torch.equal(plan.cost, alone.cost)
    assert plan.statistics.best.shape == (3, 2)
    descended = Chain(sampled, GradientPlanner(quadratic, box(), GradientConfig(2, 40, init_std=0.05)))
    assert (descended.plan(None, goal, horizon=H, generators=seeded(2)).cost < 0.01 * alone.cost).all()
    with pytest.raises(ValueError, match="no planners"):
        Chain()
