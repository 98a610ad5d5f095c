"""The parts around the search: chunks, the action prior, receding horizon and objectives."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
import torch
from planner_problems import A, H, Start, box, seeded
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cjepa_agent.matching import match_slots, pairwise_errors
from cjepa_agent.planning import ObjectiveSettings
from cjepa_agent.predictors.released import ReleasedPredictorConfig
from cjepa_agent.world_model import WorldModelConfig
from planners import CEM, ActionPrior, CEMConfig, GoalObjective, RecedingHorizon, RecedingState, in_chunks
from planners.noise import truncate

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


def test_targets_say_what_they_compare() -> None:
    released, own = WorldModelConfig(predictor=ReleasedPredictorConfig(), roles={"block": 1}), WorldModelConfig()
    position = ObjectiveSettings(proprio_dims=(0, 1))
    assert position.build(own).proprio_dims == (0, 1)
    with pytest.raises(ValueError, match="embeds as a whole"):
        position.build(released)
    assert ObjectiveSettings(matching=True).describe() != ObjectiveSettings().describe()
    for roles in ({"block": 4}, {"block": -1}, {"block": "0"}, ["block"]):
        with pytest.raises(ValueError, match="roles must name slots 0 to 3"):
            WorldModelConfig(roles=roles)  # type: ignore[arg-type]


def test_noise_is_cut_to_bounds_however_far_from_the_mean() -> None:
    noise = torch.randn(1, 2000, 1, 1, generator=torch.Generator().manual_seed(0))
    for low, high in ((9.0, 29.0), (-29.0, -9.0), (40.0, 60.0), (1.0, 2.0), (-1.0, 0.5)):
        cut, mirrored = (
            truncate(part, torch.tensor(first), torch.tensor(last)).flatten()
            for part, first, last in ((noise, low, high), (-noise, -high, -low))
        )
        assert torch.allclose(cut, -mirrored, atol=1e-4) and low <= cut.min() <= cut.max() <= high
        if abs(low) < 30:
            near = min(abs(low), abs(high)) if low * high > 0 else 0.0
            assert cut.abs().median() < near + 0.6 and len(cut.unique()) > 1000, (low, high)
        else:
            assert (cut == low).all()


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
    errors = pairwise_errors(predicted[:, :, -1], goal_slots[:, None])
    best = [float(matrix[linear_sum_assignment(matrix)].mean()) for matrix in errors.flatten(0, 1).numpy()]
    assert torch.allclose(equal.flatten(), torch.tensor(best, dtype=equal.dtype))


def test_a_matched_cost_is_differentiable_and_passes_nan_on() -> None:
    goal = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(3))
    slots = (goal[:, [1, 0, 3, 2]] + 0.5)[:, None, None].clone().requires_grad_()
    GoalObjective(match=match_slots)(slots, None, goal, None).sum().backward()
    assert slots.grad is not None
    torch.testing.assert_close(slots.grad, torch.full_like(slots, 2 * 0.5 / (4 * 3)))
    broken = slots.detach().clone()
    broken[..., 2, 0] = torch.nan
    assert GoalObjective(match=match_slots)(broken, None, goal, None).isnan().all()


def test_objective_drives_a_planner() -> None:
    def cost(z0: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        slots = (z0[:, None, None] + actions.cumsum(2)).unflatten(-1, (2, 2))
        return GoalObjective(match=match_slots)(slots, None, goal, None)

    goal = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]])
    result = CEM(cost, box(), CEMConfig(n_samples=200, n_iterations=30, n_elites=20)).plan(
        torch.zeros(1, A), goal, horizon=H, generators=seeded(1)
    )
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
