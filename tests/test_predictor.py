"""Masks, loss and predictor."""

from __future__ import annotations

import pytest
import torch

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import Block, MaskedPredictor, PredictorConfig, attend, last_motion, last_visible
from cjepa_agent.predictors.losses import LossSettings, cjepa_loss, saturated
from cjepa_agent.predictors.masking import MaskConfig, sample_mask

S, D, P, A = 4, 16, 3, 6


def make_predictor(**changes: object) -> MaskedPredictor:
    torch.manual_seed(0)
    predictor = MaskedPredictor(
        PredictorConfig(**{"depth": 2, "width": 32, "mlp": 64, "future": 2, **changes}), S, D, P, A
    )
    for parameter in predictor.parameters():  # the output heads start at zero, which would hide every dependence
        torch.nn.init.normal_(parameter, std=0.2)
    return predictor.eval()


def history(batch: int = 2, frames: int = 3) -> Latent:
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(batch, frames, S, D, generator=generator)
    return Latent(slots, torch.randn(batch, frames, P, generator=generator))


@pytest.mark.parametrize("length", [1, 11, 15, 16, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learning", [False, True])
def test_attention_is_the_same_whichever_way_is_fastest(length: int, dtype: torch.dtype, learning: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 2, length, 8, generator=generator) for _ in range(3)]
    given = [part.to(dtype).requires_grad_(learning) for part in parts]
    exact = [part.detach().double().requires_grad_(learning) for part in given]
    found, expected = attend(*given), torch.nn.functional.scaled_dot_product_attention(*exact)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    if learning:
        slopes = torch.autograd.grad(found.float().square().sum(), given)
        for one, other in zip(slopes, torch.autograd.grad(expected.square().sum(), exact), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=10 * tolerance, atol=10 * tolerance)
    assert attend(1e4 * given[0], *given[1:]).isfinite().all()


class TestMask:
    def test_object_masks_hide_whole_objects_after_their_first_frame(self) -> None:
        hidden = sample_mask(MaskConfig(count=2), 500, 3, S, torch.Generator().manual_seed(0))
        assert not hidden[:, 0].any()
        assert (hidden[:, 1] == hidden[:, 2]).all()
        assert (hidden[:, 1].sum(1) == 2).all()

    def test_every_object_is_hidden_about_equally_often_and_samples_differ(self) -> None:
        hidden = sample_mask(MaskConfig(count=1), 4000, 2, S, torch.Generator().manual_seed(0))[:, 1].float()
        assert hidden.mean(0).sub(0.25).abs().max() < 0.03

    def test_generator_advances(self) -> None:
        generator = torch.Generator().manual_seed(0)
        draws = [sample_mask(MaskConfig(), 8, 2, S, generator) for _ in range(2)]
        assert not torch.equal(*draws)
        again = sample_mask(MaskConfig(), 8, 2, S, torch.Generator().manual_seed(0))
        assert torch.equal(draws[0], again)

    def test_fixed_masks_are_the_same_in_every_sample(self) -> None:
        hidden = sample_mask(MaskConfig(kind="fixed"), 16, 3, S, torch.Generator().manual_seed(3))
        assert (hidden == hidden[:1]).all() and hidden.any()

    def test_tube_hides_the_anchor_too(self) -> None:
        hidden = sample_mask(MaskConfig(kind="tube"), 16, 3, S, torch.Generator().manual_seed(3))
        assert (hidden.sum(1) % 3 == 0).all() and (hidden[:, 0].sum(1) == 1).all()

    @pytest.mark.parametrize("kind", ["object", "token", "tube", "fixed"])
    def test_nothing_of_a_single_frame_is_hidden(self, kind: str) -> None:
        assert not sample_mask(MaskConfig(2, kind), 16, 1, S, torch.Generator()).any()  # type: ignore[arg-type]

    def test_token_masks_hide_as_many_cells_but_no_first_frame(self) -> None:
        hidden = sample_mask(MaskConfig(kind="token", count=2), 200, 3, S, torch.Generator().manual_seed(3))
        assert not hidden[:, 0].any()
        assert (hidden.sum((1, 2)) == 2 * 2).all()
        assert not (hidden[:, 1] == hidden[:, 2]).all()

    def test_upto_draws_every_count(self) -> None:
        hidden = sample_mask(MaskConfig(count=2, upto=True), 300, 2, S, torch.Generator().manual_seed(3))
        assert set(hidden[:, 1].sum(1).tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        "config", [{"count": -1}, {"kind": "square"}, {"history_weight": -1}, {"future_weight": float("nan")}]
    )
    def test_refuses_bad_settings(self, config: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"mask\."):
            MaskConfig(**config)  # type: ignore[arg-type]

    def test_refuses_more_objects_than_slots(self) -> None:
        with pytest.raises(ValueError, match="5.*4 slots"):
            sample_mask(MaskConfig(count=5), 1, 2, S, torch.Generator())


class TestLoss:
    def test_terms_are_means_and_total_is_their_sum(self) -> None:
        target, hidden = history(4, 4), torch.zeros(4, 3, S, dtype=torch.bool)
        hidden[:, 1:, 2] = True
        prediction = Latent(target.slots + 2.0, target.proprio + 3.0)
        terms = cjepa_loss(prediction, target, hidden, LossSettings(proprio_weight=0.5))
        assert terms.history.item() == pytest.approx(4.0) and terms.future.item() == pytest.approx(4.0)
        assert terms.proprio.item() == pytest.approx(9.0)
        assert terms.total.item() == pytest.approx(4 + 4 + 4.5)

    def test_what_is_hidden_counts_as_much_as_its_weights_say(self) -> None:
        target, hidden = history(2, 4), torch.zeros(2, 3, S, dtype=torch.bool)
        hidden[:, 1:, 2], hidden[:, 1, 1] = True, True  # slot 1 is seen again in the last frame
        error = torch.zeros_like(target.slots)
        error[:, :, 2], error[:, :, 1] = 3.0, 2.0
        prediction = Latent(target.slots + error, target.proprio)
        published = cjepa_loss(prediction, target, hidden)
        assert published.history.item() == pytest.approx((9 + 9 + 4) / 3)
        assert published.future.item() == pytest.approx((9 + 4) / S)
        for weight, future in ((0.0, 4 / (S - 1)), (0.5, (4 + 4.5) / (S - 0.5))):
            terms = cjepa_loss(prediction, target, hidden, LossSettings(1.0, 0.1, weight))
            assert terms.history == published.history and terms.future.item() == pytest.approx(future)
            assert terms.total.item() == pytest.approx(0.1 * published.history.item() + future)

    def test_one_frame_of_history_hides_nothing_from_the_future(self) -> None:
        target = history(2, 4)
        prediction, hidden = Latent(target.slots + 1, target.proprio), torch.zeros(2, 1, S, dtype=torch.bool)
        assert cjepa_loss(prediction, target, hidden, LossSettings(hidden_future_weight=0.0)).future == 1

    def test_nothing_hidden_leaves_the_future_only(self) -> None:
        target = history(2, 4)
        prediction = Latent(target.slots.clone(), target.proprio)
        prediction.slots[:, :3] += 5.0
        assert cjepa_loss(prediction, target, torch.zeros(2, 3, S, dtype=torch.bool)).total == 0

    def test_a_batch_is_the_mean_of_its_halves(self) -> None:
        target, prediction = history(6, 4), history(6, 4).select(torch.arange(5, -1, -1))
        hidden = sample_mask(MaskConfig(count=2, upto=True), 6, 3, S, torch.Generator().manual_seed(0))
        whole = cjepa_loss(prediction, target, hidden).total
        halves = [
            cjepa_loss(prediction.select(part), target.select(part), hidden[part]).total
            for part in (slice(0, 3), slice(3, 6))
        ]
        assert torch.allclose(whole, torch.stack(halves).mean())

    def test_no_gradient_reaches_the_target(self) -> None:
        target = Latent(torch.randn(1, 2, S, D, requires_grad=True), torch.randn(1, 2, P, requires_grad=True))
        prediction = Latent(torch.randn(1, 2, S, D, requires_grad=True), torch.randn(1, 2, P))
        cjepa_loss(prediction, target, torch.zeros(1, 1, S, dtype=torch.bool)).total.backward()
        assert target.slots.grad is None and prediction.slots.grad is not None


class TestVideos:
    """Without proprioception and actions."""

    def make(self, **changes: object) -> MaskedPredictor:
        torch.manual_seed(0)
        config = PredictorConfig(**{"depth": 2, "width": 32, "mlp": 64, "future": 3, **changes})  # type: ignore[arg-type]
        predictor = MaskedPredictor(config, S, D, 0, 0)
        for parameter in predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return predictor.eval()

    def past(self, objects: int = S) -> Latent:
        return Latent(history().slots[:, :, :objects], torch.zeros(2, 3, 0))

    @torch.no_grad()
    def test_shapes_and_weights(self) -> None:
        predictor, hidden = self.make(), torch.zeros(2, 3, S, dtype=torch.bool)
        future = predictor(self.past(), torch.zeros(2, 5, 0), future=3)
        assert future.slots.shape == (2, 3, S, D) and future.proprio.shape == (2, 3, 0)
        assert predictor(self.past(), torch.zeros(2, 5, 0), hidden, 3).slots.shape == (2, 6, S, D)
        assert not [name for name in predictor.state_dict() if "proprio" in name or "action" in name]
        assert all(parameter.numel() for parameter in predictor.parameters())

    @torch.no_grad()
    def test_all_frames_of_a_call_are_those_of_a_plain_transformer(self) -> None:
        predictor, past = self.make(residual=False), self.past()
        hidden = sample_mask(MaskConfig(count=2), 2, 3, S, torch.Generator().manual_seed(0))
        cells = []
        for frame in range(6):
            for slot in range(S):
                query = predictor.mask_slot + predictor.anchor_slot(past.slots[:, 0, slot])
                seen = predictor.embed_slot(past.slots[:, frame, slot]) if frame < 3 else query
                shown = ~hidden[:, frame, slot, None] if frame < 3 else torch.zeros(2, 1, dtype=torch.bool)
                cells.append(torch.where(shown, seen, query) + predictor.time[frame])
        x = torch.stack(cells, dim=1)
        for block in predictor.blocks:
            x = block(x, x.shape[1])
        expected = predictor.head_slot(predictor.norm(x)).unflatten(1, (6, S))
        assert torch.allclose(predictor(past, torch.zeros(2, 5, 0), hidden, 3).slots, expected, atol=1e-5)

    @torch.no_grad()
    def test_hidden_objects_do_not_leak(self) -> None:
        predictor, past = self.make(residual=False), self.past()
        hidden = torch.zeros(2, 3, S, dtype=torch.bool)
        hidden[:, 1:, 1] = True
        before = predictor(past, torch.zeros(2, 5, 0), hidden, 3).slots
        past.slots[:, 1:, 1] += 10.0
        assert torch.equal(before, predictor(past, torch.zeros(2, 5, 0), hidden, 3).slots)

    @torch.no_grad()
    def test_objects_can_be_left_out(self) -> None:
        made = self.make()(self.past(3), torch.zeros(2, 5, 0), future=3)
        assert made.slots.shape == (2, 3, 3, D)

    def test_half_of_the_auxiliary_tokens_is_refused(self) -> None:
        with pytest.raises(ValueError, match="P=3, A=0"):
            MaskedPredictor(PredictorConfig(), S, D, P, 0)

    def test_loss_without_proprioception(self) -> None:
        target = Latent(history(2, 6).slots, torch.zeros(2, 6, 0))
        terms = cjepa_loss(Latent(target.slots + 1, target.proprio), target, torch.zeros(2, 3, S, dtype=torch.bool))
        assert terms.proprio == 0 and terms.total.item() == pytest.approx(1.0)


def test_saturated_errors_count_as_they_are_where_small_and_little_more_where_large() -> None:
    error = torch.tensor([0.0, 1e-6, 1e-2, 1.0, 100.0], requires_grad=True)
    made = saturated(error, 0.01)
    slope = torch.autograd.grad(made.sum(), error)[0]
    assert made[:2].tolist() == pytest.approx([0.0, 1e-6], rel=1e-3)
    assert slope.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.01, 1e-4], rel=0.02)
    assert saturated(error, 0.0) is error


class TestPredictor:
    def test_shapes(self) -> None:
        predictor, hidden = make_predictor(), torch.zeros(2, 3, S, dtype=torch.bool)
        assert predictor(history(), torch.zeros(2, 3, A)).slots.shape == (2, 1, S, D)
        everything = predictor(history(), torch.zeros(2, 4, A), hidden, future=2)
        assert everything.slots.shape == (2, 5, S, D) and everything.proprio.shape == (2, 5, P)

    @torch.no_grad()
    @pytest.mark.parametrize("motion", [False, True])
    def test_hidden_cells_do_not_leak(self, motion: bool) -> None:
        """What is hidden must have no influence on any prediction, hidden objects' first frame excepted."""
        predictor, past = make_predictor(residual=False, motion=motion), history()
        hidden = torch.zeros(2, 3, S, dtype=torch.bool)
        hidden[:, 1:, 1] = True
        before = predictor(past, torch.zeros(2, 3, A), hidden)
        past.slots[:, 1:, 1] += 10.0
        after = predictor(past, torch.zeros(2, 3, A), hidden)
        assert torch.equal(before.slots, after.slots) and torch.equal(before.proprio, after.proprio)
        past.slots[:, 0, 1] += 10.0
        assert not torch.allclose(predictor(past, torch.zeros(2, 3, A), hidden).slots, before.slots)

    @torch.no_grad()
    def test_tubes_hide_the_anchor(self) -> None:
        for changes in ({}, {"residual": False}, {"motion": True}):
            predictor, past = make_predictor(**changes), history()
            hidden = torch.zeros(2, 3, S, dtype=torch.bool)
            hidden[:, :, 1] = True
            before = predictor(past, torch.zeros(2, 3, A), hidden).slots[:, :3]
            past.slots[:, :, 1] += 10.0
            assert torch.equal(before, predictor(past, torch.zeros(2, 3, A), hidden).slots[:, :3])

    @torch.no_grad()
    def test_reading_only_the_future_gives_the_same_future(self) -> None:
        predictor, past = make_predictor(), history()
        actions = torch.randn(2, 3, A, generator=torch.Generator().manual_seed(2))
        read = predictor(past, actions)
        everything = predictor(past, actions, torch.zeros(2, 3, S, dtype=torch.bool))
        assert torch.allclose(read.slots[:, 0], everything.slots[:, 3], atol=1e-5)

    @torch.no_grad()
    def test_objects_are_equivariant_to_their_order(self) -> None:
        predictor, past, order = make_predictor(), history(), torch.tensor([2, 0, 3, 1])
        actions = torch.zeros(2, 3, A)
        plain = predictor(past, actions)
        permuted = predictor(Latent(past.slots[:, :, order], past.proprio), actions)
        assert torch.allclose(plain.slots[:, :, order], permuted.slots, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("auxiliary", ["tokens", "concat"])
    def test_every_action_conditions_the_prediction(self, auxiliary: str) -> None:
        predictor, past = make_predictor(auxiliary=auxiliary), history()
        base = predictor(past, torch.zeros(2, 3, A)).slots
        for step in range(3):
            actions = torch.zeros(2, 3, A)
            actions[:, step] = 1.0
            assert not torch.allclose(predictor(past, actions).slots, base)

    @torch.no_grad()
    def test_starts_by_copying_the_last_visible_latent(self) -> None:
        torch.manual_seed(0)
        predictor, past = MaskedPredictor(PredictorConfig(), S, D, P, A), history()
        prediction = predictor(past, torch.randn(2, 3, A))
        assert torch.equal(prediction.slots[:, 0], past.slots[:, -1])

    def test_last_visible(self) -> None:
        past = history(1, 3)
        hidden = torch.zeros(1, 3, S, dtype=torch.bool)
        hidden[0, 1:, 0], hidden[0, 2, 1], hidden[0, :, 2] = True, True, True
        base = last_visible(past, hidden, future=1).slots[0]
        assert torch.equal(base[:, 0], past.slots[0, [0, 0, 0, 0], 0])
        assert torch.equal(base[:, 1], past.slots[0, [0, 1, 1, 1], 1])
        assert not base[:, 2].any()
        assert torch.equal(base[:, 3], past.slots[0, [0, 1, 2, 2], 3])

    def test_what_is_hidden_at_first_is_known_once_it_is_seen(self) -> None:
        past, hidden = history(1, 3), torch.zeros(1, 3, S, dtype=torch.bool)
        hidden[0, 0, 1] = True
        base = last_visible(past, hidden, future=1).slots[0]
        assert not base[0, 1].any() and torch.equal(base[1:, 1], past.slots[0, [1, 2, 2], 1])

    def test_last_motion(self) -> None:
        past = history(1, 3)
        hidden = torch.zeros(1, 3, S, dtype=torch.bool)
        hidden[0, 1:, 0], hidden[0, 1, 1], hidden[0, :, 2] = True, True, True
        latent, change = last_motion(past.slots, hidden, future=1)[0].chunk(2, dim=-1)
        assert torch.equal(latent, last_visible(past, hidden, 1).slots[0])
        assert not change[:, :3].any() and not change[0].any()
        steps = past.slots[0, 1:, 3] - past.slots[0, :-1, 3]
        assert torch.equal(change[1:, 3], steps[[0, 1, 1]])

    @torch.no_grad()
    def test_attention_between_objects(self) -> None:
        """Weights of a query over all cells sum to one; the first layer's are those of its own softmax."""
        torch.manual_seed(0)
        predictor = MaskedPredictor(PredictorConfig(depth=2, width=32, mlp=64, future=2), S, D, 0, 0).eval()
        past = Latent(history().slots, torch.zeros(2, 3, 0))
        weights = predictor.attention(past, torch.zeros(2, 4, 0), future=2)
        assert weights.shape == (2, 2, 4, 2, S, S)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 4, 2, S), atol=1e-5)
        seen: list[torch.Tensor] = []
        handle = predictor.blocks[0].norm_attention.register_forward_hook(lambda _, __, out: seen.append(out))
        predictor(past, torch.zeros(2, 4, 0), future=2)
        handle.remove()
        block = predictor.blocks[0]
        query, key = block.query(seen[0]), block.key_value(seen[0])[..., :32]
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            logits = torch.einsum("bqc,bkc->bqk", query[..., part], key[..., part]) / 8**0.5
            cells = logits.softmax(-1).view(2, 5, S, 5, S).sum(3)[:, 3:]
            assert torch.allclose(weights[:, 0, head], cells, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("auxiliary", ["tokens", "concat"])
    def test_attention_between_objects_leaves_out_what_else_is_looked_at(self, auxiliary: str) -> None:
        """With action cells first and a proprioception cell behind each frame's slots."""
        predictor, past = make_predictor(auxiliary=auxiliary), history()
        hidden = torch.zeros(2, 3, S, dtype=torch.bool)
        hidden[:, 1:, 0] = True
        actions = torch.randn(2, 3, A)
        weights, block = predictor.attention(past, actions, hidden)[:, 0], predictor.blocks[0]
        seen: list[torch.Tensor] = []
        handle = block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        predictor(past, actions, hidden)
        handle.remove()
        before, wide = (3, S + 1) if auxiliary == "tokens" else (0, S)
        attention, last = block.attention(seen[0]), before + 3 * wide
        for query in range(S):
            for key in range(S):
                cells = [before + frame * wide + key for frame in range(4)]
                expected = attention[:, :, last + query, cells].sum(-1)
                assert torch.allclose(weights[:, :, 0, query, key], expected, atol=1e-6)
        assert (weights.sum(-1) < 0.999).all() == (auxiliary == "tokens")

    def test_refuses_what_does_not_fit(self) -> None:
        predictor = make_predictor()
        with pytest.raises(ValueError, match="4 frames.*1..3"):
            predictor(history(2, 4), torch.zeros(2, 4, A))
        with pytest.raises(ValueError, match="need 3 action blocks, got 2"):
            predictor(history(), torch.zeros(2, 2, A))
        with pytest.raises(ValueError, match="3 future frames"):
            predictor(history(), torch.zeros(2, 5, A), future=3)
        more = Latent(history().slots.repeat(1, 1, 2, 1), history().proprio)
        with pytest.raises(ValueError, match="8 slots, the predictor 4"):
            predictor(more, torch.zeros(2, 3, A))
        with pytest.raises(ValueError, match="multiple"):
            PredictorConfig(width=30, heads=4)

    def test_inputs_are_not_changed(self) -> None:
        past, actions = history(), torch.randn(2, 3, A)
        copies = past.slots.clone(), past.proprio.clone(), actions.clone()
        make_predictor()(past, actions, torch.ones(2, 3, S, dtype=torch.bool))
        assert all(torch.equal(a, b) for a, b in zip((past.slots, past.proprio, actions), copies, strict=True))


@torch.no_grad()
def test_cells_look_at_others_by_their_keys_and_values_alone() -> None:
    torch.manual_seed(0)
    block, cells, others = Block(16, 2, 32, 0.0), torch.randn(3, 5, 16), torch.randn(3, 4, 16)
    seen = torch.rand(3, 9) > 0.3
    seen[:, 4] = True
    expected = block(torch.cat([others, cells], dim=1), 5, seen)
    assert torch.allclose(block(cells, 5, seen, block.keys_values(others)), expected, atol=1e-6)
