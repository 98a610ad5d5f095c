"""The privileged encoder: what its slots mean, and that the whole pipeline runs on them and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from tiny_model import SETTINGS

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.encoders.base import centroid_of
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.encoders.state import GOAL_POSE, SLOTS, StateDecoder, StateEncoder, angle_of
from cjepa_agent.latent import Latent
from cjepa_agent.training.predictor_stage import find_roles
from cjepa_agent.world_model import grid_coordinates
from envs.pusht import PushTEnv
from envs.pusht.render import SEGMENTS, PushTRenderer

AGENT, BLOCK = SLOTS.index("agent"), SLOTS.index("block")


def states(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.hstack([rng.uniform(60, 450, (count, 4)), rng.uniform(-9, 9, (count, 3))]))


def test_place_and_angle_can_be_read_back() -> None:
    truth = states(200)
    slots = StateEncoder().read(truth)
    assert slots.shape == (200, 4, 128) and torch.equal(slots, StateEncoder().read(truth))
    place = 256 * (centroid_of(slots).double() + 1)
    assert torch.allclose(place[:, AGENT], truth[:, :2], atol=1e-3)
    assert torch.allclose(place[:, BLOCK], truth[:, 2:4], atol=1e-3)
    turn = angle_of(slots[:, BLOCK]).double() - truth[:, 4]
    assert torch.atan2(turn.sin(), turn.cos()).abs().max() < 1e-5
    still = slots[:, [SLOTS.index("background"), SLOTS.index("goal")]]
    assert torch.equal(still, still[:1].expand_as(still))


def test_appearance_changes_with_the_angle_alone() -> None:
    truth = states(1).repeat(3, 1)
    truth[1, :4] += 30
    truth[2, 4] += 1
    block = StateEncoder().read(truth)[:, BLOCK, 12:]
    assert torch.equal(block[0], block[1])
    cosines = sum(np.cos(k) for k in (1, 2, 3))  # of the rotation by 1 rad
    assert (block[2] - block[0]).square().sum() == pytest.approx(2 * (3 - cosines), rel=1e-4)


def test_drawings_agree_with_the_renderer() -> None:
    truth = states(8)[:, :7]
    _, masks = StateDecoder()(StateEncoder().read(truth), grid_coordinates(128).expand(8, -1, -1))
    assert torch.allclose(masks.sum(1), torch.ones(()), atol=1e-5)
    assert SLOTS == SEGMENTS
    renderer = PushTRenderer(128, 128)
    for state, found in zip(truth.numpy(), masks.argmax(1).numpy(), strict=True):
        assert (renderer.masks(state, GOAL_POSE).flatten() == found).mean() > 0.98


def test_roles_are_found_in_stored_slots() -> None:
    now = states(300)
    later = now + torch.randn(now.shape, generator=torch.Generator().manual_seed(0)) * 20
    proprio = now[:, [0, 1, 5, 6]].float()
    latents = [Latent(StateEncoder().read(s).half().float(), proprio) for s in (now, later)]
    assert find_roles(*latents) == {"agent": AGENT, "block": BLOCK}


@pytest.mark.parametrize("change", [{"n_slots": 5}, {"slot_dim": 22}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="kind=state needs"):
        EncoderConfig(kind="state", **change).build()


def test_states_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="states must be"):
        StateEncoder().read(torch.zeros(3, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes without pictures, their privileged slots, and a predictor trained on these by the commands."""
    rng = np.random.default_rng(0)

    def episode() -> dict[str, np.ndarray]:
        state = rng.uniform(150, 350, 7) + rng.uniform(-2, 2, 7) * np.arange(40)[:, None]
        actions = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
        return {"state": state, "proprio": state[:, [0, 1, 5, 6]].astype(np.float32), "action": actions}

    folder = tmp_path_factory.mktemp("state")
    write_episodes(folder / "data.h5", (episode() for _ in range(6)))
    run("cjepa_agent.extract", "data=data.h5", "encoder=state", "out=slots", folder=folder)
    run(
        "cjepa_agent.train", "data=data.h5", "slots=slots", "out=run", "predictor.depth=1",
        "predictor.width=32", "predictor.mlp=32", "dynamics.windows=16", "dynamics.rollout_batch=4",
        "trainer.batch=8", "trainer.steps=3", "trainer.precision=32-true",
        folder=folder,
    )  # fmt: skip
    return folder


def test_extracted_slots_are_those_of_the_states(folder: Path) -> None:
    data = EpisodeFile(folder / "data.h5")
    expected = StateEncoder().read(torch.from_numpy(data.read("state", 2)))
    stored = SlotData(data, folder / "slots").frames(np.arange(80, 120)).slots
    assert torch.allclose(stored, expected, atol=1e-3)


def test_checkpoint_round_trip(folder: Path, tmp_path: Path) -> None:
    first = Checkpoint.from_pretrained(folder / "run/checkpoint")
    assert first.model.config.encoder.kind == "state"
    assert first.model.config.roles == {"agent": AGENT, "block": BLOCK}
    assert not [name for name in first.model.state_dict() if name.startswith(("encoder", "decoder"))]
    assert first.training["encoder"] == {"privileged": "slots from the true state by a fixed map"}
    first.save_pretrained(tmp_path)
    again, scene = Checkpoint.from_pretrained(tmp_path), (states(3), torch.zeros(3, 4))
    assert all(map(torch.equal, first.model.encode(*scene), again.model.encode(*scene)))
    card = (tmp_path / "README.md").read_text()
    assert "**Privileged" in card and "| frames | none: the encoder reads the true state |" in card


def test_agent_needs_the_state_and_says_why(folder: Path) -> None:
    agent = CJEPAAgent.from_pretrained(folder / "run/checkpoint", SETTINGS)
    env = PushTEnv(task="goal_state")
    observation, info = env.reset(seed=0)
    action, _ = agent.predict({**observation, **info})
    assert agent.privileged and np.abs(action).max() <= 1
    assert agent.imagination(size=16).frames.shape == (3, 16, 16, 3)
    for refuse in (lambda: agent.predict(observation), lambda: agent.check_env(env)):
        with pytest.raises(ValueError, match="'goal_state'.*privileged.*info"):
            refuse()
    with pytest.raises(ValueError, match=r"goal_state is float64 .* expected \(7,\)"):
        agent.predict({**observation, **info, "goal_state": info["goal_state"][:5]})


def test_evaluation_labels_the_row(folder: Path) -> None:
    done = run(
        "cjepa_agent.evaluate", "weights=run/checkpoint", "rules=[strict]", "episodes=2", "budget=6",
        "oracle_episodes=0", "videos=1", "planner.method=cem", "planner.cem.n_samples=6", "planner.cem.n_iterations=2",
        "planner.cem.n_elites=3", folder=folder,
    )  # fmt: skip
    assert "strict  C-JEPA (privileged state)  " in done.stdout
    rows = json.loads((folder / "results/pusht_planning.json").read_text())["rows"]
    assert [row["controller"] for row in rows] == ["no-op", "random", "C-JEPA (privileged state)"]
    assert (folder / "videos/pusht_strict_0.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("cjepa_agent.train", "stage=encoder", "encoder.kind=state", "data=data.h5", "out=none"),
            "encoder.kind is 'state'; expected one of ['slots', 'still', 'patches', 'dinov2', ",
        ),
        (("cjepa_agent.evaluate", "task=probe", "weights=run/checkpoint"), "is privileged"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments, folder=folder, expect=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
