"""CEM: analytic optima, independence of the batch, the course of a solve, bad input."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest
import torch
from planner_problems import A, H, Start, assert_same_plan, box, network_cost, part, quadratic, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import planners
from planners import CEM, ActionPrior, CEMConfig, PlanResult, in_chunks
from planners.shooting import ordered_sum

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = CEMConfig(n_samples=60, n_iterations=5, n_elites=8)
THOROUGH = CEMConfig(n_samples=200, n_iterations=30, n_elites=20)
PATIENT = CEMConfig(n_samples=600, n_iterations=40, n_elites=60)  # for optima along directions of no single axis


# --- CEM finds optima -------------------------------------------------------------------------------------------------


def test_the_package_example_runs() -> None:
    results = doctest.testmod(planners)
    assert results.attempted >= 8
    assert results.failed == 0


@pytest.mark.parametrize("returns", ["mean", "best"])
def test_cem_reaches_the_optimum_of_a_correlated_quadratic(returns: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(H * A, H * A, generator=generator) / 8 + torch.eye(H * A)
    optimum = torch.rand(2, H, A, generator=generator) - 0.5

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        return ((actions - goal.unsqueeze(1)).flatten(2) @ factor).square().sum(-1)

    config = replace(PATIENT, returns=returns)
    result = CEM(cost, box(), config).plan(None, optimum, horizon=H, generators=seeded(2))
    assert result.actions.shape == (2, H, A)
    assert torch.allclose(result.actions, optimum, atol=0.02)
    assert torch.allclose(result.cost, cost(None, optimum, result.actions.unsqueeze(1))[:, 0], atol=1e-6)


def test_cem_reaches_the_bounded_optimum_and_never_costs_a_candidate_beyond_the_bounds() -> None:
    low, high = torch.tensor([-1.0, 0.0, -0.2, 2.0]), torch.tensor([1.0, 0.5, 0.2, 3.0])
    goal = torch.full((1, H, A), 0.7)
    seen = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions)
        return quadratic(z0, goal, actions)

    result = CEM(cost, ActionPrior.standard(low, high), THOROUGH).plan(None, goal, horizon=H, generators=seeded(1))
    candidates = torch.cat(seen, dim=1)
    assert ((candidates >= low) & (candidates <= high)).all()
    assert (candidates == low).any() and (candidates == high).any()
    assert torch.allclose(result.actions, goal.clamp(low, high), atol=1e-3)


def test_cem_solves_a_point_mass_as_linear_algebra_does() -> None:
    steps, effort = 4, 1.0
    # Position after the last step of a unit mass pushed by u, from rest: sum_h (steps - h) u_h.
    gain = torch.arange(steps, 0, -1, dtype=torch.float64)
    reach = torch.tensor([2.0, -1.0], dtype=torch.float64)
    optimum = torch.linalg.solve(
        gain[:, None] * gain + effort * torch.eye(steps, dtype=torch.float64), gain[:, None] * reach
    )

    def cost(start: Tensor, goal: Tensor, pushes: Tensor) -> Tensor:
        position = start[:, None, None] + pushes.cumsum(2).cumsum(2)
        return (position[:, :, -1] - goal[:, None]).square().sum(-1) + effort * pushes.square().sum((-1, -2))

    result = CEM(cost, box(width=2), PATIENT).plan(
        torch.zeros(1, 2), reach.float()[None], horizon=steps, generators=seeded(1)
    )
    assert torch.allclose(result.actions[0].double(), optimum, atol=0.02)
    far = CEM(cost, box(width=2), PATIENT).plan(
        torch.zeros(1, 2), torch.tensor([[50.0, -50.0]]), horizon=steps, generators=seeded(1)
    )
    assert torch.equal(far.actions[0], torch.tensor([[1.0, -1.0]]).expand(steps, 2))


def test_cem_searches_the_priors_components() -> None:
    basis = torch.tensor([[0.3, 0.0], [0.3, 0.0], [0.0, 0.2], [0.0, -0.2]])
    prior = ActionPrior(torch.full((A,), 0.1), basis, torch.full((A,), -2.0), torch.full((A,), 2.0))
    reachable = torch.tensor([0.5, 0.5, -0.3, 0.5]).expand(1, H, A)
    off_plane = torch.tensor([0.2, -0.2, 0.1, 0.1])  # orthogonal to the basis: cannot be reached, must not matter
    result = CEM(quadratic, prior, THOROUGH).plan(None, reachable + off_plane, horizon=H, generators=seeded(1))
    assert torch.allclose(result.actions, reachable, atol=1e-3)


# --- An environment's plan is its own ---------------------------------------------------------------------------------


def test_same_seed_same_plan_and_another_seed_another() -> None:
    planner = CEM(quadratic, box(), SMALL)
    goal = torch.zeros(2, H, A)
    first = planner.plan(None, goal, horizon=H, generators=seeded(2))
    assert_same_plan(first, planner.plan(None, goal, horizon=H, generators=seeded(2)))
    assert not torch.equal(first.actions, planner.plan(None, goal, horizon=H, generators=seeded(2, 9)).actions)
    assert not torch.equal(first.actions[0], first.actions[1])


@pytest.mark.parametrize("returns", ["mean", "best"])
@pytest.mark.parametrize("sizes", [(1,) * 8, (3, 5), (4, 4), (7, 1)])
def test_an_environment_alone_equals_itself_in_any_batch_to_the_last_bit(sizes: tuple[int, ...], returns: Any) -> None:
    data = torch.Generator().manual_seed(1)
    latent, target = torch.randn(8, 7, generator=data), torch.randn(8, 19, generator=data) / 4
    warm = torch.rand(8, H, A, generator=data) - 0.5
    basis = torch.randn(A, 3, generator=data)
    prior = ActionPrior(torch.zeros(A), basis, torch.full((A,), -1.0), torch.full((A,), 1.0))
    planner = CEM(
        in_chunks(network_cost()), prior, CEMConfig(n_samples=37, n_iterations=6, n_elites=7, returns=returns)
    )

    def solve(chosen: slice, generators: list[torch.Generator]) -> PlanResult:
        start, goal = Start(latent[chosen], "any"), {"latent": target[chosen]}
        return planner.plan(start, goal, horizon=H, generators=generators, warm_start=warm[chosen])

    generators = seeded(8)
    together = solve(slice(0, 8), generators)
    split_generators, first = seeded(8), 0
    for size in sizes:
        chosen = slice(first, first + size)
        assert_same_plan(solve(chosen, split_generators[chosen]), part(together, chosen))
        first += size
    for one, other in zip(generators, split_generators, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("envs_per_call", [1, 2, 3, 8, 20])
def test_chunks_hand_every_environment_to_the_cost_function_once(envs_per_call: int) -> None:
    sizes = []

    def cost(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        sizes.append(len(actions))
        assert len(z0) == len(goal) == len(actions)
        return quadratic(z0, goal, actions) + z0[:, None]

    z0, goal = torch.arange(8.0), torch.rand(8, H, A, generator=torch.Generator().manual_seed(0))
    whole = CEM(cost, box(), SMALL).plan(z0, goal, horizon=H, generators=seeded(8))
    sizes.clear()
    chunked = CEM(in_chunks(cost, envs_per_call), box(), SMALL).plan(z0, goal, horizon=H, generators=seeded(8))
    assert_same_plan(whole, chunked)
    assert max(sizes) == min(envs_per_call, 8)
    assert sum(sizes) == 8 * (SMALL.n_iterations + 1)


@pytest.mark.parametrize("candidates_per_call", [1, 7, 60, 100])
def test_chunks_hand_every_candidate_to_the_cost_function_once(candidates_per_call: int) -> None:
    sizes = []

    def cost(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        sizes.append(actions.shape[1])
        return quadratic(z0, goal, actions) + z0[:, None]

    z0, goal = torch.arange(3.0), torch.rand(3, H, A, generator=torch.Generator().manual_seed(0))
    whole = CEM(cost, box(), SMALL).plan(z0, goal, horizon=H, generators=seeded(3))
    sizes.clear()
    parts = in_chunks(cost, 2, candidates_per_call)
    assert_same_plan(whole, CEM(parts, box(), SMALL).plan(z0, goal, horizon=H, generators=seeded(3)))
    assert max(sizes) == min(candidates_per_call, SMALL.n_samples)
    assert sum(sizes) == 2 * (SMALL.n_iterations * SMALL.n_samples + 1)  # two calls for three environments


def test_what_does_not_fit_the_memory_is_split_from_then_on() -> None:
    sizes = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        sizes.append(actions.shape[1])
        if actions.shape[1] > 20:
            raise torch.cuda.OutOfMemoryError("no memory")
        return quadratic(z0, goal, actions)

    goal = torch.rand(1, H, A, generator=torch.Generator().manual_seed(0))
    expected = CEM(quadratic, box(), SMALL).plan(None, goal, horizon=H, generators=seeded(1))
    found = CEM(in_chunks(cost), box(), SMALL).plan(None, goal, horizon=H, generators=seeded(1))
    assert_same_plan(expected, found)
    assert sizes == [60, 30, *[15] * 4 * SMALL.n_iterations, 1]

    def hungry(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("no memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        in_chunks(hungry)(None, goal, torch.zeros(1, 5, H, A))


def test_sums_have_the_same_order_whatever_the_batch() -> None:
    x = torch.randn(6, 31, 5, generator=torch.Generator().manual_seed(0)) * 1e3
    assert torch.allclose(ordered_sum(x, 1), x.double().sum(1).float(), rtol=1e-5)
    assert torch.equal(ordered_sum(x, 1)[4, 3], ordered_sum(x[4, :, 3], 0))


def test_the_whole_solve_reads_nothing_back_between_iterations() -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.count += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for n_iterations in (1, 7):
        config = CEMConfig(n_samples=20, n_iterations=n_iterations, n_elites=4)
        goal = torch.zeros(2, H, A)
        with Reads() as reads:
            CEM(quadratic, box(), config).plan(None, goal, horizon=H, generators=seeded(2), warm_start=goal)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
def test_a_cuda_solve_equals_the_cpu_one_when_the_cost_does() -> None:
    goal = torch.rand(5, H, A, generator=torch.Generator().manual_seed(0))

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        return ordered_sum((actions - goal.unsqueeze(1)).square().flatten(2), 2)

    on_cpu = CEM(cost, box(), SMALL).plan(None, goal, horizon=H, generators=seeded(5))
    on_gpu = CEM(cost, box().to("cuda"), SMALL).plan(None, goal.cuda(), horizon=H, generators=seeded(5))
    assert torch.equal(on_cpu.actions, on_gpu.actions.cpu())


# --- The course of a solve --------------------------------------------------------------------------------------------


def test_candidate_0_is_the_mean() -> None:
    seen = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions)
        return quadratic(z0, goal, actions)

    config = CEMConfig(n_samples=40, n_iterations=3, n_elites=5)
    warm = torch.linspace(-0.5, 0.5, 2 * H * A).reshape(2, H, A)
    result = CEM(cost, box(), config).plan(None, torch.zeros(2, H, A), horizon=H, generators=seeded(2), warm_start=warm)
    assert [len(actions[0]) for actions in seen] == [40, 40, 40, 1]
    assert torch.allclose(seen[0][:, 0], warm, atol=1e-6)
    costs = quadratic(None, torch.zeros(2, H, A), seen[0])
    elites = seen[0].take_along_dim(costs.topk(5, largest=False).indices[..., None, None], dim=1)
    inside = (elites.abs() < 1).all(1)  # where nothing was clipped, the refit can be redone from the actions
    assert inside.any()
    assert torch.allclose(seen[1][:, 0][inside], elites.mean(1)[inside], atol=1e-5)
    assert torch.equal(seen[3][:, 0], result.actions)
    cold = CEM(cost, box(), config).plan(None, torch.zeros(2, H, A), horizon=H, generators=seeded(2))
    assert torch.equal(seen[4][:, 0], torch.zeros(2, H, A))
    assert not torch.equal(cold.actions, result.actions)


def test_statistics_describe_the_iterations() -> None:
    seen = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        seen.append(quadratic(z0, goal, actions))
        return seen[-1]

    result = CEM(cost, box(limit=100.0), SMALL).plan(None, torch.zeros(2, H, A), horizon=H, generators=seeded(2))
    statistics = result.statistics
    assert statistics.best.shape == statistics.elite.shape == statistics.spread.shape == (5, 2)
    for row, costs in enumerate(seen[:-1]):
        lowest = costs.sort(1).values[:, :8]
        assert torch.equal(statistics.best[row], lowest[:, 0])
        assert torch.allclose(statistics.elite[row], lowest.mean(1))
    assert (statistics.spread[-1] < 0.5 * statistics.spread[0]).all()


def test_the_refit_uses_the_unbiased_deviation_of_the_elites_then_momentum_and_floor() -> None:
    recorded: list[Tensor] = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        recorded.append(actions)
        return quadratic(z0, goal, actions)

    goal = torch.zeros(1, 1, A)
    for momentum, floor in ((0.0, 0.0), (0.25, 0.0), (0.0, 0.9)):
        recorded.clear()
        config = CEMConfig(50, 1, 10, min_std=floor, momentum=momentum)
        result = CEM(cost, box(limit=100.0), config).plan(None, goal, horizon=1, generators=seeded(1))
        order = quadratic(None, goal, recorded[0]).argsort(1)[0, :10]
        elites = recorded[0][0, order, 0]
        assert torch.allclose(result.actions[0, 0], (1 - momentum) * elites.mean(0), atol=1e-6)
        expected = momentum + (1 - momentum) * elites.std(0).clamp(min=floor)
        assert torch.allclose(result.statistics.spread[0, 0], expected.mean(), atol=1e-6)


def test_a_warm_start_at_the_optimum_stays_at_least_as_good() -> None:
    generator = torch.Generator().manual_seed(3)
    goal = torch.rand(2, H, A, generator=generator) - 0.5
    config = CEMConfig(n_samples=20, n_iterations=2, n_elites=5, returns="best")
    cold = CEM(quadratic, box(), config).plan(None, goal, horizon=H, generators=seeded(2))
    warm = CEM(quadratic, box(), config).plan(None, goal, horizon=H, generators=seeded(2), warm_start=cold.actions)
    assert (cold.cost > 0.1).all()
    assert (warm.statistics.best[0] <= cold.cost + 1e-6).all()
    assert (warm.cost <= cold.cost + 1e-6).all()
    optimal = CEM(quadratic, box(), config).plan(None, goal, horizon=H, generators=seeded(2), warm_start=goal)
    assert (optimal.statistics.best[0] < 1e-10).all()
    assert (optimal.cost < 1e-10).all()


def test_equal_costs_are_ordered_by_candidate_number() -> None:
    seen = []

    def flat(z0: None, goal: None, actions: Tensor) -> Tensor:
        seen.append(actions)
        return actions.new_zeros(actions.shape[:2])

    config = CEMConfig(n_samples=500, n_iterations=1, n_elites=3)
    result = CEM(flat, box(limit=100.0), config).plan(None, None, horizon=H, generators=seeded(1))
    assert torch.allclose(result.actions[0], seen[0][0, :3].mean(0), atol=1e-6)


def test_best_returns_the_cheapest_candidate_ever_seen() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def rising(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        seen.append((actions, quadratic(z0, goal, actions) + 100 * len(seen)))
        return seen[-1][1]

    goal = torch.zeros(2, H, A)
    config = CEMConfig(n_samples=30, n_iterations=4, n_elites=5, returns="best")
    result = CEM(rising, box(), config).plan(None, goal, horizon=H, generators=seeded(2))
    actions, costs = seen[0]
    assert len(seen) == 4
    assert torch.equal(result.cost, costs.amin(1))
    assert torch.equal(result.actions, actions[torch.arange(2), costs.argmin(1)])


# --- NaN and infinity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_candidates_of_non_finite_cost_lose(bad: float) -> None:
    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        costs = quadratic(z0, goal, actions)
        return costs.masked_fill(actions[..., 0].amin(-1) < 0, bad)  # 7 of 8 candidates at first

    goal = torch.full((1, H, A), 0.3)
    config = CEMConfig(n_samples=60, n_iterations=40, n_elites=20)
    result = CEM(cost, box(), config).plan(None, goal, horizon=H, generators=seeded(1))
    assert torch.allclose(result.actions, goal, atol=0.05)
    assert result.statistics.elite.isfinite().all()


def test_a_mean_of_non_finite_cost_gives_way_to_the_best_candidate() -> None:
    def ring(z0: None, goal: None, actions: Tensor) -> Tensor:
        return actions.abs().sum((-1, -2)).masked_fill(actions.abs().amin((-1, -2)) < 0.5, torch.nan)

    config = CEMConfig(n_samples=400, n_iterations=1, n_elites=100)
    result = CEM(ring, box(width=1, limit=2.0), config).plan(None, None, horizon=1, generators=seeded(1))
    assert result.cost.item() == result.actions.abs().item() == result.statistics.best.item() >= 0.5


def test_an_iteration_without_finite_costs_changes_nothing() -> None:
    calls = []

    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        calls.append(actions)
        return quadratic(z0, goal, actions) + (torch.nan if len(calls) == 2 else 0.0)

    config = CEMConfig(n_samples=30, n_iterations=3, n_elites=5)
    result = CEM(cost, box(), config).plan(None, torch.zeros(1, H, A), horizon=H, generators=seeded(1))
    assert torch.equal(calls[1][:, 0], calls[2][:, 0])
    assert result.statistics.spread[0] == result.statistics.spread[1]
    assert result.statistics.best[1].isinf() and result.statistics.elite[1].isinf()
    assert result.cost.isfinite()


def test_an_environment_without_any_finite_cost_is_an_error_that_names_it() -> None:
    def cost(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        return quadratic(z0, goal, actions) + z0[:, None]

    z0 = torch.tensor([0.0, torch.nan, 0.0, torch.inf])
    for returns in ("mean", "best"):
        config = CEMConfig(20, 2, 5, returns=returns)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"environment\(s\) \[1, 3\] had a NaN or infinite cost"):
            CEM(cost, box(), config).plan(z0, torch.zeros(4, H, A), horizon=H, generators=seeded(4))


# --- What does not fit is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_samples": 1, "n_elites": 1}, "n_samples is 1"),
        ({"n_iterations": 0}, "n_iterations is 0"),
        ({"n_samples": 20, "n_elites": 21}, "n_elites is 21; expected 2 to n_samples = 20"),
        ({"n_elites": 1}, "n_elites is 1"),
        ({"init_std": 0.0}, "init_std is 0"),
        ({"init_std": float("nan")}, "init_std is nan"),
        ({"min_std": 2.0}, "min_std is 2"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"returns": "median"}, "returns is 'median'"),
    ],
)
def test_cem_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CEMConfig(**settings)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"horizon": 0}, "horizon is 0; expected at least 1"),
        ({"generators": []}, "no generators"),
        ({"generators": [torch.Generator()] * 2}, "share a generator"),
        ({"warm_start": torch.zeros(2, H + 1, A)}, r"warm_start has shape \(2, 4, 4\); expected .* \(2, 3, 4\)"),
        ({"warm_start": torch.full((2, H, A), torch.nan)}, "warm_start holds NaN"),
        ({"warm_start": torch.zeros(2, H, A, device="meta")}, "warm_start is on meta .* prior is on cpu"),
    ],
)
def test_requests_that_do_not_fit(request_: dict[str, Any], message: str) -> None:
    request = {"horizon": H, "generators": seeded(2)} | request_
    with pytest.raises(ValueError, match=message):
        CEM(quadratic, box(), SMALL).plan(None, torch.zeros(2, H, A), **request)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a: a.sum(-1), r"shape \(2, 60, 3\); expected \(B, N\) = \(2, 60\)"),
        (lambda a: a.sum((-1, -2)).T, r"shape \(60, 2\)"),
        (lambda a: a.sum((-1, -2)).long(), "torch.int64; expected a tensor of floats"),
        (lambda a: a.sum().item(), "returned float"),
        (lambda a: a.sum((-1, -2)).to("meta"), "costs on meta for actions on cpu"),
    ],
)
def test_answers_of_the_cost_function_that_do_not_fit(answer: Any, message: str) -> None:
    planner: CEM[None, None] = CEM(lambda z0, goal, actions: answer(actions), box(), SMALL)
    with pytest.raises(ValueError, match=message):
        planner.plan(None, None, horizon=H, generators=seeded(2))


def test_a_half_precision_cost_is_accepted() -> None:
    def cost(z0: None, goal: Tensor, actions: Tensor) -> Tensor:
        return quadratic(z0, goal, actions).bfloat16()

    result = CEM(cost, box(), SMALL).plan(None, torch.zeros(1, H, A), horizon=H, generators=seeded(1))
    assert result.actions.dtype == result.cost.dtype == torch.float32
