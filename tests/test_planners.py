"""Planners: analytic optima, independence of the batch, bad input, and the parts around the search."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from planner_problems import A, H, Start, assert_same_plan, box, network_cost, part, quadratic, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import planners
from cjepa_agent.matching import match_slots, matched_cost
from planners import CEM, ActionPrior, CEMConfig, GoalObjective, PlanResult, RecedingHorizon, RecedingState, in_chunks
from planners.shooting import ordered_sum

SMALL = CEMConfig(n_samples=60, n_iterations=5, n_elites=8)
THOROUGH = CEMConfig(n_samples=200, n_iterations=30, n_elites=20)
PATIENT = CEMConfig(n_samples=600, n_iterations=40, n_elites=60)  # for optima along directions of no single axis


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small take a fraction of the time that a second thread takes to join in."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


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


# --- Chunks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    slots: Tensor
    parts: list[Tensor]
    proprio: Tensor | None = None


def test_chunks_take_apart_nested_structures() -> None:
    seen = []

    def cost(z0: Scene, goal: tuple[Start, float], actions: Tensor) -> Tensor:
        seen.append((z0, goal))
        return actions.sum((-1, -2))

    z0 = Scene(torch.arange(6.0).reshape(2, 3).T, [torch.arange(3)])
    in_chunks(cost, 2)(z0, (Start(torch.arange(3) * 10, "note"), 0.5), torch.zeros(3, 4, H, A))
    (first, first_goal), (second, second_goal) = seen
    assert first.slots.tolist() == [[0, 3], [1, 4]] and second.slots.tolist() == [[2, 5]]
    assert first.slots.is_contiguous() and first.proprio is None
    assert second.parts[0].tolist() == [2]
    assert isinstance(first_goal[0], Start) and first_goal[0].latent.tolist() == [0, 10]
    assert second_goal[0].note == "note" and second_goal[1] == 0.5


def test_chunks_refuse_what_they_cannot_take_apart() -> None:
    def cost(z0: Any, goal: Any, actions: Tensor) -> Tensor:
        return actions.sum((-1, -2))

    with pytest.raises(ValueError, match="envs_per_call is 0"):
        in_chunks(cost, 0)
    with pytest.raises(ValueError, match="candidates_per_call is 0"):
        in_chunks(cost, 1, 0)
    actions = torch.zeros(3, 4, H, A)
    with pytest.raises(ValueError, match=r"shape \(2, 5\); expected a first axis of 3"):
        in_chunks(cost)(torch.zeros(2, 5), None, actions)
    with pytest.raises(TypeError, match="holds a set"):
        in_chunks(cost)({1, 2}, None, actions)


# --- The prior --------------------------------------------------------------------------------------------------------


def recorded_blocks() -> Tensor:
    """Blocks (500, 6) that vary in three directions of standard deviations 2, 1, 0.1 about a mean of 0.5."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64)).Q
    scores = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    scores = (scores - scores.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(scores.T.cov())).T
    return 0.5 + scores * torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64) @ directions.T


def wide(width: int = 6) -> dict[str, Tensor]:
    return {"low": torch.full((width,), -10.0), "high": torch.full((width,), 10.0)}


def test_fit_finds_the_components_scaled_by_their_deviation() -> None:
    blocks = recorded_blocks()
    prior = ActionPrior.fit(blocks, **wide())
    assert (prior.action_dim, prior.latent_dim, prior.dtype) == (6, 3, torch.float32)
    assert torch.allclose(prior.mean, torch.full((6,), 0.5), atol=1e-5)
    assert torch.allclose(prior.basis.norm(dim=0), torch.tensor([2.0, 1.0, 0.1]), atol=1e-4)
    assert (prior.basis.gather(0, prior.basis.abs().argmax(0, keepdim=True)) > 0).all()  # the sign is settled
    x = prior.encode(blocks.float())
    assert torch.allclose(x.T.cov(), torch.eye(3), atol=1e-3)
    assert torch.allclose(prior.decode(x), blocks.float(), atol=1e-4)


def test_fit_keeps_as_many_components_as_asked() -> None:
    blocks = recorded_blocks()
    assert ActionPrior.fit(blocks, **wide(), components=2).latent_dim == 2
    # The variances are 4, 1 and 0.01 of 5.01.
    for share, expected in ((0.5, 1), (0.79, 1), (0.81, 2), (0.99, 2), (0.999, 3), (1.0, 3)):
        assert ActionPrior.fit(blocks, **wide(), explained_variance=share).latent_dim == expected
    for arguments, message in (
        ({"components": 4}, "components is 4; expected 1 to 3"),
        ({"components": 0}, "components is 0"),
        ({"explained_variance": 0.0}, "explained_variance is 0"),
        ({"components": 1, "explained_variance": 0.5}, "at most one"),
    ):
        with pytest.raises(ValueError, match=message):
            ActionPrior.fit(blocks, **wide(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all action blocks are equal"):
        ActionPrior.fit(torch.ones(5, 6), **wide())
    with pytest.raises(ValueError, match="expected finite"):
        ActionPrior.fit(torch.full((5, 6), torch.nan), **wide())


def test_decode_is_affine_then_clipped_and_encode_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(1)
    prior = ActionPrior(torch.randn(5, generator=generator), torch.randn(5, 3, generator=generator), *wide(5).values())
    x = torch.randn(2, 7, 3, generator=generator)
    actions = prior.decode(x)
    assert torch.allclose(actions, (prior.mean + x @ prior.basis.T).clamp(-10, 10), atol=1e-5)
    assert torch.allclose(prior.encode(actions), x, atol=1e-4)
    anything = torch.randn(4, 5, generator=generator)
    solved = torch.linalg.lstsq(prior.basis, (anything - prior.mean).T).solution.T
    assert torch.allclose(prior.encode(anything), solved, atol=1e-4)
    assert prior.decode(torch.full((3,), 1e6)).abs().amax() == 10


def test_decode_and_encode_round_the_same_for_every_batch_shape() -> None:
    generator = torch.Generator().manual_seed(2)
    prior = ActionPrior(
        torch.randn(31, generator=generator), torch.randn(31, 19, generator=generator), *wide(31).values()
    )
    x = torch.randn(41, 5, 19, generator=generator)
    actions = prior.decode(x)
    latents = prior.encode(actions)
    for row in range(41):
        assert torch.equal(prior.decode(x[row, 2]), actions[row, 2])
        assert torch.equal(prior.encode(actions[row, 2]), latents[row, 2])


def test_standard_prior_starts_from_the_middle_of_the_bounds() -> None:
    prior = ActionPrior.standard(torch.tensor([0.0, -1.0]), torch.tensor([512.0, 1.0]), std=torch.tensor([50.0, 0.2]))
    assert prior.decode(torch.zeros(2)).tolist() == [256.0, 0.0]
    assert torch.allclose(prior.decode(torch.ones(2)), torch.tensor([306.0, 0.2]))
    unbounded = torch.full((2,), torch.inf)
    given = ActionPrior.standard(-unbounded, unbounded, mean=torch.ones(2))
    assert given.decode(torch.full((2,), 1e6)).tolist() == [1e6 + 1] * 2


def test_prior_is_restored_exactly_from_its_tensors_and_cannot_be_changed() -> None:
    prior = ActionPrior.fit(recorded_blocks(), **wide(), components=2)
    restored = ActionPrior(**{name: tensor.clone() for name, tensor in prior.tensors().items()})
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored.decode(x), prior.decode(x))
    assert torch.equal(restored.encode(prior.decode(x)), prior.encode(prior.decode(x)))
    with pytest.raises(FrozenInstanceError):
        prior.mean = prior.mean + 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(())}, "mean has shape"),
        ({"basis": torch.eye(3)}, r"basis has shape \(3, 3\); expected \(2, K\)"),
        ({"basis": torch.ones(2, 3)}, "basis has shape"),
        ({"basis": torch.ones(2, 2)}, "2 columns but rank 1"),
        ({"basis": torch.full((2, 1), torch.nan)}, "basis holds NaN"),
        ({"mean": torch.tensor([0.0, torch.nan])}, "mean holds NaN"),
        ({"low": torch.zeros(3)}, r"low has shape \(3,\)"),
        ({"low": torch.tensor([0.0, 1.0])}, "bounds are empty"),
        ({"high": torch.tensor([1.0, torch.nan])}, "bounds are empty"),
        ({"high": torch.ones(2).double()}, "bring all four tensors to one dtype and device"),
        ({"low": torch.zeros(2, device="meta")}, "bring all four tensors to one dtype and device"),
        ({name: torch.ones(2).long() for name in ("mean", "high", "low")} | {"basis": torch.eye(2).long()}, "floating"),
    ],
)
def test_priors_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    tensors = {"mean": torch.zeros(2), "basis": torch.eye(2), "low": -torch.ones(2), "high": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        ActionPrior(**(tensors | change))


# --- Receding horizon -------------------------------------------------------------------------------------------------


def run(control: RecedingHorizon, n_plans: int) -> tuple[list[int], list[int], list[list[float]]]:
    """Horizons, executed blocks and warm starts when plan number p consists of blocks 10 p, 10 p + 1, ..."""
    state, horizons, executed, warm_starts = RecedingState(), [], [], []
    for number in range(n_plans):
        horizon = control.next_horizon(state)
        warm_starts.append(control.warm_start(state, torch.tensor([-1.0]))[:, 0].tolist())
        blocks, state = control.hand_out(state, 10 * number + torch.arange(float(horizon))[:, None])
        assert blocks[:, 0].tolist() == [10 * number + block for block in range(len(blocks))]
        horizons.append(horizon)
        executed.append(len(blocks))
    assert state.executed == sum(executed)
    return horizons, executed, warm_starts


def test_constant_horizon_shifts_the_last_plan_and_pads() -> None:
    horizons, executed, warm = run(RecedingHorizon(horizon=5, replan_every=2), 3)
    assert (horizons, executed) == ([5, 5, 5], [2, 2, 2])
    assert warm == [[-1] * 5, [2, 3, 4, -1, -1], [12, 13, 14, -1, -1]]


def test_a_plan_executed_to_its_end_leaves_nothing_to_carry() -> None:
    horizons, executed, warm = run(RecedingHorizon(horizon=3, replan_every=3), 2)
    assert (horizons, executed) == ([3, 3], [3, 3])
    assert warm == [[-1] * 3, [-1] * 3]


def test_shrinking_horizon_counts_down_to_the_goal_time_and_stays() -> None:
    horizons, executed, warm = run(RecedingHorizon(horizon=5, replan_every=1, shrink=True, min_horizon=2), 6)
    assert horizons == [5, 4, 3, 2, 2, 2]
    assert executed == [1] * 6
    assert warm[1:] == [[1, 2, 3, 4], [11, 12, 13], [21, 22], [31, -1], [41, -1]]


def test_a_missed_goal_gets_a_second_countdown() -> None:
    control = RecedingHorizon(horizon=5, replan_every=1, shrink=True, min_horizon=2, restart=3)
    horizons, _, warm = run(control, 9)
    assert horizons == [5, 4, 3, 2, 2, 3, 2, 2, 3]
    assert warm[5] == [41, -1, -1]


def test_short_plans_are_executed_whole() -> None:
    horizons, executed, _ = run(RecedingHorizon(horizon=5, replan_every=3, shrink=True, min_horizon=1), 4)
    assert (horizons, executed) == ([5, 2, 1, 1], [3, 2, 1, 1])


def test_receding_horizon_refuses_what_does_not_fit() -> None:
    for settings in (
        {"horizon": 0},
        {"horizon": 3},
        {"horizon": 9, "replan_every": 0},
        {"min_horizon": 6},
        {"restart": 6},
    ):
        with pytest.raises(ValueError, match="expected"):
            RecedingHorizon(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"plan has shape \(4, 2\); expected \(H, A\) with H = 5"):
        RecedingHorizon().hand_out(RecedingState(), torch.zeros(4, 2))


# --- Objectives -------------------------------------------------------------------------------------------------------


def prediction() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, H, 4, 8), (2, 6, H, 3), (2, 4, 8), (2, 3))
    slots, proprio, goal_slots, goal_proprio = (torch.randn(shape, generator=generator) for shape in shapes)
    return slots, proprio, goal_slots, goal_proprio


def test_default_objective_is_the_published_one() -> None:
    slots, proprio, goal_slots, goal_proprio = prediction()
    expected = (slots[:, :, -1] - goal_slots[:, None]).square().mean((-1, -2))
    assert torch.allclose(GoalObjective()(slots, proprio, goal_slots, None), expected)
    expected = expected + (proprio[:, :, -1] - goal_proprio[:, None]).square().mean(-1)
    assert torch.allclose(GoalObjective()(slots, proprio, goal_slots, goal_proprio), expected)


def test_only_the_chosen_numbers_of_proprioception_count() -> None:
    slots, proprio, goal_slots, goal_proprio = prediction()
    objective = GoalObjective(proprio_dims=(0, 1))
    expected = GoalObjective()(slots, proprio[..., :2], goal_slots, goal_proprio[:, :2])
    proprio[..., 2:] = torch.nan
    assert torch.allclose(objective(slots, proprio, goal_slots, goal_proprio), expected)


def test_weights_and_path() -> None:
    slots, proprio, goal_slots, goal_proprio = prediction()
    weights = torch.tensor([0.0, 2.0, 0.5, 0.0])
    steps = ((slots - goal_slots[:, None, None]).square().mean(-1) * weights).sum(-1)
    steps = steps + 0.3 * (proprio - goal_proprio[:, None, None]).square().mean(-1)
    reductions = {"last": steps[:, :, -1], "mean": steps.mean(2), "best": steps.min(2).values}
    for path, expected in reductions.items():
        objective = GoalObjective(tuple(weights.tolist()), 0.3, path)  # type: ignore[arg-type]
        assert torch.allclose(objective(slots, proprio, goal_slots, goal_proprio), expected)
    slots[..., 0, :] = torch.nan
    objective = GoalObjective(tuple(weights.tolist()), 0.3, "mean")
    assert torch.allclose(objective(slots, proprio, goal_slots, goal_proprio), reductions["mean"])


def test_matched_slots_are_weighted_by_the_goals_slot() -> None:
    _, _, goal_slots, _ = prediction()
    offset = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None] * 0.1
    order = torch.tensor([2, 0, 3, 1])
    slots = (goal_slots + offset)[:, None, None, order]
    objective = GoalObjective((0.0, 0.0, 1.0, 0.0), match=match_slots)
    assert torch.allclose(objective(slots, None, goal_slots, None), torch.full((2, 1), 0.09))
    predicted = prediction()[0]
    equal = GoalObjective(match=match_slots)(predicted, None, goal_slots, None)
    assert torch.allclose(equal, matched_cost(predicted[:, :, -1], goal_slots[:, None]))


def test_objective_drives_a_planner() -> None:
    def cost(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        slots = (z0[:, None, None] + actions.cumsum(2)).unflatten(-1, (2, 2))
        return GoalObjective(match=match_slots)(slots, None, goal, None)

    goal = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]])
    result = CEM(cost, box(), THOROUGH).plan(torch.zeros(1, A), goal, horizon=H, generators=seeded(1))
    assert result.cost.item() < 1e-4


def test_objectives_that_do_not_fit() -> None:
    slots, proprio, goal_slots, goal_proprio = prediction()
    for arguments, message in (
        ({"slot_weights": (1.0, -1.0)}, "weight -1"),
        ({"proprio_weight": float("nan")}, "weight nan"),
        ({"proprio_dims": ()}, r"proprio_dims \(\)"),
        ({"proprio_dims": (0, -1)}, "expected indices >= 0"),
        ({"path": "first"}, "path is 'first'"),
    ):
        with pytest.raises(ValueError, match=message):
            GoalObjective(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 slot weights for 4 slots"):
        GoalObjective((1.0, 1.0))(slots, proprio, goal_slots, goal_proprio)
    with pytest.raises(ValueError, match=r"expected \(B, N, H, S, D\) and \(B, S, D\)"):
        GoalObjective()(slots, proprio, goal_slots[:1], goal_proprio)
    with pytest.raises(ValueError, match="the prediction has none"):
        GoalObjective()(slots, None, goal_slots, goal_proprio)
    with pytest.raises(ValueError, match=r"expected \(B, N, H, P\) and \(B, P\)"):
        GoalObjective()(slots, proprio[:, :, -1:], goal_slots, goal_proprio)
    assert GoalObjective(proprio_weight=0.0)(slots, None, goal_slots, goal_proprio).shape == (2, 6)
