"""Videos continued, run again from their beginning, and changed by a removal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from clevrer_scenes import random_scenes
from perfect_predictor import true_slots
from video_model import CONFIG, random_model

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.clevrer_state import read_scene, scene_states
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.rollout import RolloutConfig
from cjepa_agent.video_prediction import downstream, expectations, resimulated
from cjepa_agent.world_model import WorldModel
from envs.clevrer import simulate
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES
from envs.clevrer.shapes import RADIUS


class TestForecast:
    def test_known_cells_are_put_in_and_seen_by_the_next_call(self) -> None:
        model = random_model()
        history, later = (
            Latent(torch.randn(2, n, 7, 128, generator=torch.Generator().manual_seed(n)), torch.zeros(2, n, 0))
            for n in (3, 8)
        )
        nothing = torch.zeros(2, 8, 7, dtype=torch.bool)
        with torch.no_grad():
            plain = model.forecast(history, 8)
            assert torch.equal(model.forecast(history, 8, given=later, known=nothing).slots, plain.slots)
            known = nothing.clone()
            known[:, 2, 5] = True
            made = model.forecast(history, 8, given=later, known=known).slots
        assert torch.equal(made[:, 2, 5], later.slots[:, 2, 5])
        others = torch.ones(8, 7, dtype=torch.bool)
        others[2, 5] = False
        assert torch.equal(made[:, :4][:, others[:4]], plain.slots[:, :4][:, others[:4]])
        assert not torch.allclose(made[:, 4:], plain.slots[:, 4:])


class TestResimulation:
    @pytest.mark.parametrize("keep", [4, 3])
    def test_objects_are_shown_until_a_call_begins_after_a_whole_history_of_them(self, keep: int) -> None:
        trajectory, model = random_scenes()[5][1], random_model()
        slots, model.keep = true_slots(trajectory), keep
        made, predicted = resimulated(model, slots.unsqueeze(0), FRAMES)
        assert made.shape == (1, FRAMES, 7, 128) and predicted.shape == (1, FRAMES, 7)
        inside = scene_states(trajectory, FRAMES)[..., 0] > 0
        for id in range(6):
            entry = int(inside[:128, id].argmax()) if inside[:128, id].any() else 128
            for frame in range(FRAMES):
                begin = 2 * (3 + (frame // 2 - 3) // keep * keep) + frame % 2  # of the call that predicts it
                foretold = begin >= max(entry, 0) + 6 or frame >= 128
                assert predicted[0, frame, id] == foretold
                if frame < 128:
                    assert torch.equal(made[0, frame, id], slots[frame, id]) != foretold

    @pytest.mark.parametrize("how", ["drop", "empty", "mask"])
    def test_what_is_removed_has_no_influence(self, how: str) -> None:
        model, slots = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        other = slots.clone()
        other[:, :, 0, :12] *= -1.0  # elsewhere, but as long in view
        whole, _ = resimulated(model, slots, 140)
        made, again = (resimulated(model, given, 140, 0, how)[0] for given in (slots, other))  # type: ignore[arg-type]
        assert torch.equal(made[:, :, 1:], again[:, :, 1:])
        assert not made[:, :, 0].any()
        changed = downstream(model, slots, 140, 0, how).slots  # type: ignore[arg-type]
        assert not changed[:, :, 0].any() and changed[:, :, 1:].any()
        if how == "empty":
            emptied = slots.clone()
            emptied[:, :, 0] = 0.0
            assert torch.equal(made[:, :, 1:], resimulated(model, emptied, 140)[0][:, :, 1:])
        assert not torch.allclose(made[:, 20:, 1:], whole[:, 20:, 1:])

    def test_a_batch_gives_what_each_video_gives_alone(self) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        together, _ = resimulated(model, videos, 150, 1)
        alone, _ = resimulated(model, videos[2:], 150, 1)
        assert torch.allclose(together[2:], alone, atol=1e-5)

    @pytest.mark.parametrize(("removed", "how"), [(-1, "drop"), (7, "drop"), (0, "emty")])
    def test_what_is_not_there_cannot_be_taken_away(self, removed: int, how: str) -> None:
        for function in (resimulated, downstream):
            with pytest.raises(ValueError, match="must be one of 7 slots, by one of"):
                function(random_model(), torch.zeros(1, 12, 7, 128), 20, removed, how)  # type: ignore[operator]

    def test_short_videos_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs 6 frames"):
            resimulated(random_model(), torch.zeros(1, 5, 7, 128), 20)


class TestDownstream:
    @pytest.mark.parametrize(("observed", "keep", "every"), [(128, 4, 0), (127, 4, 4), (128, 3, 0), (128, 3, 3)])
    @pytest.mark.parametrize("how", ["drop", "empty"])
    def test_without_tolerance_it_is_the_run_from_the_beginning(
        self, how: str, observed: int, keep: int, every: int
    ) -> None:
        model, videos = random_model(), torch.stack([true_slots(t)[:observed] for _, t in random_scenes()[3:5]])
        model.keep = keep
        again, predicted = resimulated(model, videos, 150, 1, how)  # type: ignore[arg-type]
        found = downstream(model, videos, 150, 1, how, tolerance=-1.0, every=every)  # type: ignore[arg-type]
        assert torch.equal(found.predicted[:, :, :6], predicted[:, :, :6])
        assert torch.allclose(found.slots, again, atol=1e-4)

    @pytest.mark.parametrize("observed", [128, 127])
    def test_what_does_not_change_is_as_observed(self, observed: int) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1])[:observed].unsqueeze(0)
        found = downstream(model, video, 150, 0, tolerance=torch.inf)
        assert torch.equal(found.slots[:, :observed, 1:], video[:, :, 1:]) and not found.slots[:, :, 0].any()
        assert not found.predicted[:, :observed].any() and found.predicted[:, observed:].all()

    def test_predictors_of_one_frame_are_compared_as_far_ahead_as_c_jepa(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        config = SlotFormerConfig(depth=1, width=32, heads=2, mlp=32, history=3)
        model, asked = WorldModel(replace(CONFIG, predictor=config)).eval(), []
        plain = model.forecast
        monkeypatch.setattr(model, "forecast", lambda *given: asked.append(given[1]) or plain(*given))
        video = true_slots(random_scenes()[5][1]).unsqueeze(0)
        copied = downstream(model, video, 150, 0).slots  # it predicts no change, whoever is there
        assert set(asked) == {10} and torch.equal(copied[:, :128, 1:], video[:, :, 1:])

    def test_objects_part_where_the_removal_tells(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        reached = downstream(model, video, 150, 0, tolerance=torch.inf).apart[0]
        assert reached[0] == 0 and (reached[1:4] > 0).all()
        order = reached.argsort(descending=True)
        between = float(reached[order[:2]].mean())
        found = downstream(model, video, 128, 0, tolerance=between)
        parted = found.predicted[0].any(0)
        assert parted[order[0]]
        first = int(found.predicted[0, :, order[0]].int().argmax())
        assert torch.equal(found.slots[0, :first, 1:], video[0, :first, 1:])
        # Once parted, an object does not come back to the observed course.
        for slot in parted.nonzero().flatten():
            for offset in (0, 1):
                own = found.predicted[0, offset::2, slot]
                assert not own.any() or own[int(own.int().argmax()) :].all()

    def test_what_is_removed_has_no_influence_but_through_the_others(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        other = video.clone()
        other[:, :, 0, :12] *= -1.0
        for tolerance in (-1.0, torch.inf):
            made, again = (downstream(model, given, 140, 0, tolerance=tolerance).slots for given in (video, other))
            assert torch.equal(made, again)

    def test_a_batch_gives_what_each_video_gives_alone(self) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        together, alone = downstream(model, videos, 150, 1), downstream(model, videos[2:], 150, 1)
        assert torch.allclose(together.slots[2:], alone.slots, atol=1e-5)
        assert torch.allclose(together.apart[2:], alone.apart, rtol=1e-3)

    @pytest.mark.parametrize(("keep", "every"), [(4, 3), (4, 1), (3, 2)])
    def test_asked_more_often_all_that_comes_is_still_predicted(self, keep: int, every: int) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        model.keep = keep
        found = downstream(model, video, 150, 0, tolerance=torch.inf, every=every)
        assert torch.equal(found.slots[:, :128, 1:], video[:, :, 1:]) and found.predicted[:, 128:].all()
        assert found.slots[:, 128:, 1:].any(-1).all(), "no frame after the observed ones stays empty"

    def test_what_parts_goes_on_from_the_observed_video(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        reached = downstream(model, video, 128, 0, tolerance=torch.inf, every=1).apart[0]
        found = downstream(model, video, 128, 0, tolerance=float(reached.max()) / 2, every=1)
        observed, made = (
            model.latent(slots[0].unflatten(0, (64, 2)).transpose(0, 1), torch.zeros(2, 64, 0)).slots
            for slots in (video, found.slots)
        )
        checked = 0
        for offset in (0, 1):
            parted = found.predicted[0, offset::2]
            begin = int(parted.any(1).int().argmax())
            if parted[begin].any():
                window = Latent(observed[offset, None, begin - 3 : begin, 1:], torch.zeros(1, 3, 0))
                told = model.forecast(window, 1).slots[0, 0]
                own = parted[begin, 1:]
                assert torch.allclose(made[offset, begin, 1:][own], told[own], atol=1e-4)
                checked += 1
        assert checked

    def test_there_is_no_asking_after_more_than_is_kept(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        for every in (-1, 5):
            with pytest.raises(ValueError, match=f"every={every} must be 0 to 4"):
                downstream(model, video, 140, 0, every=every)
        with pytest.raises(ValueError, match="every is of downstream=true"):
            RolloutConfig(remove="drop", every=2)

    def test_expectations_are_shared_by_all_removals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        expected, asked = expectations(model, videos), []
        for slot in (0, 2):
            own, shared = (downstream(model, videos[1:], 150, slot, expected=e) for e in (None, expected[1:]))
            assert torch.allclose(shared.slots, own.slots, atol=1e-5)
            assert torch.allclose(shared.apart, own.apart, rtol=1e-3)
        plain = model.forecast
        monkeypatch.setattr(model, "forecast", lambda *given: asked.append(given) or plain(*given))
        downstream(model, videos, 150, 0, expected=expected)
        assert len(asked) == -(-(150 // 2 - 3) // 4)  # one per call, all of the video without the object


@torch.no_grad()
def test_the_bundled_state_predictor_foretells_what_removals_change() -> None:
    model = Checkpoint.from_pretrained("clevrer-state").model
    model.keep = 6
    foretold, unchanged = [], []
    for scene, trajectory in random_scenes()[:4]:
        seen, slots = scene_states(trajectory, VISIBLE_FRAMES), true_slots(trajectory).unsqueeze(0)
        for removed in scene.ids:
            true = scene_states(simulate(scene, {removed: 0}), VISIBLE_FRAMES)
            moved = np.linalg.norm(true[..., 1:3] - seen[..., 1:3], axis=-1)
            changed = (true[..., 0] > 0) & (seen[..., 0] > 0) & (moved > RADIUS)
            if changed.any():
                told = read_scene(downstream(model, slots, VISIBLE_FRAMES, removed).slots[0]).position.numpy()
                foretold.append(np.linalg.norm(told - true[..., 1:3], axis=-1)[changed].mean())
                unchanged.append(moved[changed].mean())
    assert np.mean(foretold) < 0.5 * np.mean(unchanged)
