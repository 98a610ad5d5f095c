"""Backbones of timm as patch encoders: the tests that build them need timm, which is optional."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cjepa_agent.data.episodes import write_episodes
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import encoder_config
from cjepa_agent.encoders.timm_patches import TimmPatchConfig
from cjepa_agent.extract import ExtractConfig, extract
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.objectives import SlotTrainingConfig

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
At = Callable[[torch.Tensor, int, int], torch.Tensor]
# Models of timm for tests, small: patches and a class token, feature maps, feature maps with their channels last.
VIT = TimmPatchConfig(model="test_vit", slot_dim=64, image_size=32, patch=16, decoder_width=8, weights="")
RESNET = replace(VIT, model="test_resnet", slot_dim=96, image_size=64, patch=32)
CHANNELS_LAST = replace(RESNET, model="test_mambaout", slot_dim=64)
UNCOUNTED = replace(RESNET, model="coat_lite_tiny", slot_dim=320)  # it does not tell of its class token


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install timm"):
        TimmPatchConfig().build()


def test_a_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for CUDA beside PyTorch for CPUs ends the import of timm in a RuntimeError."""

    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("cjepa_agent.encoders.timm_patches.import_module", fail)
    with pytest.raises(ValueError, match=r"torchvision of the same build as torch.*nms does not exist"):
        TimmPatchConfig().build()


class TestWithTimm:
    """What needs the package."""

    @pytest.fixture(autouse=True)
    def timm(self) -> object:
        return pytest.importorskip("timm", reason="the extra timm is not installed")

    @pytest.mark.parametrize(
        ("config", "mean", "deviation", "at"),
        [
            (VIT, [0.5] * 3, [0.5] * 3, lambda features, row, column: features[0, 1 + 2 * row + column]),
            (RESNET, [0.5] * 3, [0.5] * 3, lambda features, row, column: features[0, :, row, column]),
            (UNCOUNTED, *IMAGENET, lambda features, row, column: features[0, 1 + 2 * row + column]),
            (CHANNELS_LAST, *IMAGENET, lambda features, row, column: features[0, row, column]),
        ],
    )
    def test_tokens_are_the_features_of_patches_row_by_row(
        self, config: TimmPatchConfig, mean: list[float], deviation: list[float], at: At
    ) -> None:
        """Of frames normalised as the model's were when it was trained."""
        torch.manual_seed(0)
        encoder = config.build()[0].eval()
        assert config.n_slots == 4
        pixels = torch.rand(1, 3, config.image_size, config.image_size)
        normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
        features = encoder.backbone.network.forward_features(normalised)
        expected = torch.stack([at(features, row, column) for row in (0, 1) for column in (0, 1)])
        torch.testing.assert_close(encoder(pixels).slots[0], expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"slot_dim": 32}, "test_vit has tokens of 64 numbers for 16 px; set encoder.slot_dim=64 encoder.patch=16"),
            ({"patch": 8}, "encoder.patch=16"),
            ({"model": "no_such_model"}, "has no model 'no_such_model'"),
            ({"model": "test_vit.no_such_tag"}, "has no model 'test_vit.no_such_tag'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(VIT, **change).build()

    def test_weights_from_a_folder_stay_frozen_from_frames_to_slots(self, timm: object, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        torch.manual_seed(1)
        published = timm.create_model("test_resnet")  # with its classifier, as published weights are
        save_file(published.state_dict(), tmp_path / "model.safetensors")
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (18, 64, 64, 3), np.uint8)
        columns = {"action": np.zeros((6, 2), np.float32), "proprio": np.zeros((6, 4), np.float32)}
        write_episodes(tmp_path / "data.h5", ({"pixels": part, **columns} for part in np.split(pixels, 3)))
        train(
            TrainConfig(
                "encoder", tmp_path / "data.h5", out=tmp_path / "encoder",
                encoder=replace(RESNET, weights=str(tmp_path)),
                slot_training=SlotTrainingConfig(32, 8),
                trainer=TrainerConfig(steps=2, batch=2, optimizer="adamw", precision="32-true", accelerator="cpu"),
            )
        )  # fmt: skip
        network = SlotAutoencoder.load(tmp_path / "encoder").encoder.backbone.network
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, published.state_dict()[name]), f"{name} changed, a statistic of batches perhaps"
        extract(ExtractConfig(tmp_path / "data.h5", tmp_path / "encoder", tmp_path / "tokens"))
        stored = np.load(tmp_path / "tokens/slots.npy")
        with torch.no_grad():
            expected = SlotAutoencoder.load(tmp_path / "encoder").encoder.read(torch.from_numpy(pixels))
        np.testing.assert_allclose(stored, expected, atol=5e-3, rtol=5e-3)

    def test_weights_need_no_classifier_and_all_else(self, timm: object, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        tensors, config = (
            timm.create_model("test_resnet", num_classes=0).state_dict(),
            replace(RESNET, weights=str(tmp_path)),
        )
        save_file(tensors, tmp_path / "model.safetensors")
        for name, tensor in config.pretrained().network.state_dict().items():
            assert torch.equal(tensor, tensors[name])
        for foreign in ({f"backbone.{name}": tensor for name, tensor in tensors.items()}, {"other": torch.zeros(1)}):
            save_file(foreign, tmp_path / "model.safetensors")
            with pytest.raises(ValueError, match=r"(?s)these are not the weights of test_resnet: .*Missing key"):
                config.pretrained()
        with pytest.raises(ValueError, match="has no model 'no_such_model'"):
            replace(config, model="no_such_model").pretrained()
        (tmp_path / "model.safetensors").write_bytes(b"<html>")
        with pytest.raises(ValueError, match=r"model\.safetensors is truncated or no safetensors file"):
            config.pretrained()

    def test_out_of_reach_of_the_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with pytest.raises(
            FileNotFoundError, match=r"hf download timm/test_vit\.\S+ --local-dir .*set encoder\.weights"
        ):
            replace(VIT, weights="timm").pretrained()
        with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere/model\.safetensors"):
            replace(VIT, weights=str(tmp_path / "nowhere")).pretrained()


def test_sizes_need_no_timm() -> None:
    config = TimmPatchConfig()
    assert (config.n_slots, config.slot_dim) == (196, 384)
    assert encoder_config({**config.__dict__}) == config
