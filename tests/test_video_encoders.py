"""VideoSAUR, StoSAVi and DINOv2 against plain reimplementations of their descriptions, by the authors' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_files import DIM, Tensors, stosavi, videosaur
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.encoders import dinov2
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import grid_coordinates
from cjepa_agent.encoders.patches import PatchConfig
from cjepa_agent.encoders.videosaur import SmallVideoSAURConfig
from cjepa_agent.interop.authors import slot_autoencoder, split

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PATH = Path("source.ckpt")


def converted(kind: str, tensors: Tensors) -> SlotAutoencoder:
    return slot_autoencoder(kind, split(PATH, tensors)[kind], 4 if kind == "videosaur" else None)[0]


def video(size: int, frames: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, size, size, 3), dtype=torch.uint8, generator=generator)


def linear(x: Tensor, t: Tensors, name: str) -> Tensor:
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", torch.zeros(()))


def norm(x: Tensor, t: Tensors, name: str, eps: float = 1e-5) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def heads_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Of queries (L, C), keys and values (M, C)."""
    size = q.shape[1] // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return torch.cat([torch.softmax(q[:, p] @ k[:, p].T * scale, -1) @ v[:, p] for p in parts], dim=1)


def gru(x: Tensor, h: Tensor, t: Tensors, name: str) -> Tensor:
    gates = [x @ t[f"{name}.weight_ih"].T + t[f"{name}.bias_ih"], h @ t[f"{name}.weight_hh"].T + t[f"{name}.bias_hh"]]
    (xr, xz, xn), (hr, hz, hn) = (gate.chunk(3, dim=-1) for gate in gates)
    z = (xz + hz).sigmoid()
    return (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h


def vit(pixels: Tensor, t: Tensors, p: str, final_norm: bool) -> Tensor:
    """Patch features (P, C) of one frame (3, H, W) with one head, the names being those of transformers < 5."""
    weight = t[f"{p}embeddings.patch_embeddings.projection.weight"]
    patches = [
        (weight * pixels[:, y : y + 14, x : x + 14]).sum((1, 2, 3)) for y in range(0, 28, 14) for x in range(0, 28, 14)
    ]
    x = torch.stack(patches) + t[f"{p}embeddings.patch_embeddings.projection.bias"]
    x = torch.cat([t[f"{p}embeddings.cls_token"][0], x]) + t[f"{p}embeddings.position_embeddings"][0]
    for layer in range(2):
        at = f"{p}encoder.layer.{layer}"
        h = norm(x, t, f"{at}.norm1", 1e-6)
        q, k, v = (linear(h, t, f"{at}.attention.attention.{part}") for part in ("query", "key", "value"))
        h = linear(heads_attention(q, k, v, 1, q.shape[1] ** -0.5), t, f"{at}.attention.output.dense")
        x = x + h * t[f"{at}.layer_scale1.lambda1"]
        h = F.gelu(linear(norm(x, t, f"{at}.norm2", 1e-6), t, f"{at}.mlp.fc1"))
        x = x + linear(h, t, f"{at}.mlp.fc2") * t[f"{at}.layer_scale2.lambda1"]
    return (norm(x, t, f"{p}layernorm", 1e-6) if final_norm else x)[1:]


def videosaur_features(frame: Tensor, t: Tensors) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = vit(((frame / 255 - mean) / std).permute(2, 0, 1), t, "encoder.module.backbone.", True)
    at = "encoder.module.output_transform.layers"
    return linear(linear(norm(x, t, f"{at}.0"), t, f"{at}.1").relu(), t, f"{at}.3")


def videosaur_correct(slots: Tensor, features: Tensor, t: Tensors, iterations: int) -> Tensor:
    p = "processor.module.corrector."
    features = norm(features, t, f"{p}norm_features")
    k, v = linear(features, t, f"{p}to_k"), linear(features, t, f"{p}to_v")
    for _ in range(iterations):
        slots = norm(slots, t, f"{p}norm_slots")
        weights = torch.softmax(linear(slots, t, f"{p}to_q") @ k.T * DIM**-0.5, dim=0) + 1e-8
        slots = gru(weights / weights.sum(1, keepdim=True) @ v, slots, t, f"{p}gru")
    return slots


def videosaur_block(x: Tensor, t: Tensors, p: str, memory: Tensor | None = None) -> Tensor:
    """VideoSAUR multiplies queries by the root of a head's width: ``q / head_dim ** -0.5``."""
    h = norm(x, t, f"{p}.norm1")
    if memory is None:
        q, k, v = linear(h, t, f"{p}.self_attn.qkv").chunk(3, -1)
    else:
        q, (k, v) = linear(h, t, f"{p}.self_attn.q"), linear(memory, t, f"{p}.self_attn.kv").chunk(2, -1)
    x = x + linear(heads_attention(q, k, v, 4, (DIM // 4) ** 0.5), t, f"{p}.self_attn.out_proj")
    return x + linear(linear(norm(x, t, f"{p}.norm2"), t, f"{p}.linear1").relu(), t, f"{p}.linear2")


@torch.no_grad()
def test_videosaur_tracks_a_video() -> None:
    torch.manual_seed(0)
    t, frames, noise = videosaur(), video(28), torch.randn(4, DIM)
    slots = t["initializer.mean"][0] + noise * t["initializer.log_std"][0].exp()
    encoder, path = converted("videosaur", t).encoder, []
    for index, frame in enumerate(frames):
        slots = videosaur_correct(slots, videosaur_features(frame, t), t, 2 if index else 3)
        path.append(slots)
        slots = videosaur_block(slots, t, "processor.module.predictor.blocks.0")
    torch.testing.assert_close(encoder.track(frames[None], noise[None])[0], torch.stack(path), **CLOSE)
    torch.testing.assert_close(encoder.read(frames[:1]), encoder.track(frames[None])[0, :1], **CLOSE)


@torch.no_grad()
def test_slot_mixer() -> None:
    torch.manual_seed(0)
    t, slots, p = videosaur(), torch.randn(1, 4, DIM), "decoder.module."
    decoder = converted("videosaur", t).decoder
    place, memory = t[f"{p}pos_emb"][0], norm(slots[0], t, f"{p}norm_memory")
    queries = place
    for layer in range(3):
        queries = videosaur_block(queries, t, f"{p}allocator.blocks.{layer}", memory)
    q, k = linear(norm(queries, t, f"{p}norm_q"), t, f"{p}to_q"), linear(norm(slots[0], t, f"{p}norm_k"), t, f"{p}to_k")
    weights = torch.softmax(q @ k.T * DIM**-0.5, dim=1)
    x = weights @ slots[0] + place
    for layer in (0, 2, 4):
        x = linear(x, t, f"{p}renderer.layers.{layer}").relu()
    outputs, masks = decoder.mix(slots)
    torch.testing.assert_close(outputs[0], linear(x, t, f"{p}output_transform"), **CLOSE)
    torch.testing.assert_close(masks[0], weights.T, **CLOSE)
    corners = torch.tensor([[[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]])
    colours, drawn = decoder(slots, corners)
    torch.testing.assert_close(drawn, masks, **CLOSE)
    assert colours.shape == (1, 4, 3)


@torch.no_grad()
def test_the_original_videosaur_reads_the_last_block_without_its_norm() -> None:
    torch.manual_seed(0)
    original = videosaur(hf=False)
    backbone = converted("videosaur", original).encoder.backbone
    p, t = "encoder.module.backbone.model.", {}
    names = {"attention.attention.query": 0, "attention.attention.key": 1, "attention.attention.value": 2}
    for layer in range(2):
        for part in ("weight", "bias"):
            at = f"encoder.layer.{layer}"
            for name, index in names.items():
                t[f"{at}.{name}.{part}"] = original[f"{p}blocks.{layer}.attn.qkv.{part}"].chunk(3)[index]
            for name, own in {
                "attention.output.dense": "attn.proj", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():  # fmt: skip
                t[f"{at}.{name}.{part}"] = original[f"{p}blocks.{layer}.{own}.{part}"]
        for scale in (1, 2):
            t[f"{at}.layer_scale{scale}.lambda1"] = original[f"{p}blocks.{layer}.ls{scale}.gamma"]
    t["embeddings.cls_token"], t["embeddings.position_embeddings"] = (
        original[f"{p}cls_token"],
        original[f"{p}pos_embed"],
    )
    for part in ("weight", "bias"):
        t[f"embeddings.patch_embeddings.projection.{part}"] = original[f"{p}patch_embed.proj.{part}"]
    pixels = torch.randn(3, 28, 28)
    torch.testing.assert_close(backbone(pixels[None])[0], vit(pixels, t, "", False), **CLOSE)


@torch.no_grad()
def test_stosavi_tracks_a_video() -> None:
    torch.manual_seed(0)
    t, frames, noise = stosavi(), video(64), torch.randn(3, 3, DIM)
    line = torch.linspace(0, 1, 64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    place = linear(torch.stack([y, x, 1 - y, 1 - x], dim=-1), t, "encoder_pos_embedding.dense")
    latents, path, p = t["init_latents"][0], [], "slot_attention."
    for frame, epsilon in zip(frames, noise, strict=True):
        grid = frame.permute(2, 0, 1)[None] / 255 * 2 - 1
        for layer in range(4):
            grid = F.conv2d(grid, t[f"encoder.{layer}.0.weight"], t[f"encoder.{layer}.0.bias"], padding=2)
            grid = grid.relu() if layer < 3 else grid
        features = (grid[0].permute(1, 2, 0) + place).reshape(64 * 64, -1)
        features = norm(features, t, "encoder_out_layer.0")
        features = linear(linear(features, t, "encoder_out_layer.1").relu(), t, "encoder_out_layer.3")
        mean, log_variance = linear(latents, t, "kernel_dist_layer.0").chunk(2, -1)
        slots, features = mean + epsilon * (log_variance / 2).exp(), norm(features, t, f"{p}norm_inputs")
        k, v = linear(features, t, f"{p}project_k"), linear(features, t, f"{p}project_v")
        for _ in range(2):
            q = linear(norm(slots, t, f"{p}project_q.0"), t, f"{p}project_q.1")
            weights = torch.softmax(k @ q.T * DIM**-0.5, dim=1) + 1e-6
            slots = gru((weights / weights.sum(0)).T @ v, slots, t, f"{p}gru")
            hidden = linear(norm(slots, t, f"{p}mlp.0"), t, f"{p}mlp.1").relu()
            slots = slots + linear(hidden, t, f"{p}mlp.3")
        path.append(slots)
        normed = norm(slots, t, "predictor.ln")
        latents = normed + linear(linear(normed, t, "predictor.mlp.0").relu(), t, "predictor.mlp.2")
    encoder = converted("stosavi", t).encoder
    torch.testing.assert_close(encoder.track(frames[None], noise[None])[0], torch.stack(path), **CLOSE)
    quiet = encoder.track(frames[None, :2])[0]
    torch.testing.assert_close(encoder.read(frames[1:2], encoder.read(frames[:1])), quiet[1:], **CLOSE)


@torch.no_grad()
def test_broadcast_decoder() -> None:
    torch.manual_seed(0)
    t, slots = stosavi(), torch.randn(1, 3, DIM)
    line = torch.linspace(0, 1, 8)
    y, x = torch.meshgrid(line, line, indexing="ij")
    place = linear(torch.stack([y, x, 1 - y, 1 - x], dim=-1), t, "decoder_pos_embedding.dense").permute(2, 0, 1)
    drawn = []
    for slot in slots[0]:
        grid = (slot[:, None, None] + place)[None]
        for layer, stride in enumerate((2, 2, 2, 1)):
            weight, bias = t[f"decoder.{layer}.0.weight"], t[f"decoder.{layer}.0.bias"]
            grid = F.conv_transpose2d(grid, weight, bias, stride, padding=2, output_padding=stride - 1).relu()
        drawn.append(F.conv2d(grid, t["decoder.4.weight"], t["decoder.4.bias"])[0])
    decoder = converted("stosavi", t).decoder
    colours, masks = decoder.draw(slots)
    torch.testing.assert_close(colours[0], torch.stack(drawn)[:, :3], **CLOSE)
    torch.testing.assert_close(masks[0], torch.stack(drawn)[:, 3].softmax(0), **CLOSE)
    points = torch.rand(1, 5, 2) * 2 - 1
    torch.testing.assert_close(decoder(slots, points)[1].sum(1), torch.ones(1, 5), **CLOSE)
    blended = (torch.stack(drawn)[:, 3:].softmax(0) * torch.stack(drawn)[:, :3]).sum(0) / 2 + 0.5
    painted, _ = decoder.paint(slots, grid_coordinates(64).unsqueeze(0))
    torch.testing.assert_close(painted[0].T.unflatten(1, (64, 64)), blended, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
@pytest.mark.parametrize("side", [28, 56])
def test_dinov2_is_that_of_transformers(side: int, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra dinov2 is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56, "patch_size": 14}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pixels, patches = torch.randn(2, 3, side, side), (side // 14) ** 2
    expected = model(pixels).last_hidden_state[:, -patches:]
    network = dinov2.of_transformers(model)
    torch.testing.assert_close(network(pixels), expected, atol=1e-4, rtol=1e-4)
    features, keys = network.with_keys(pixels)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert keys.shape == (2, patches, 24)


def test_registers_are_no_tokens() -> None:
    """They change the patches' features, by attention, and are not among them."""
    torch.manual_seed(0)
    network, pixels = dinov2.DINOv2(8, 2, 2, patch=7, positions=2, registers=3), torch.randn(1, 3, 14, 14)
    features = network(pixels)
    assert features.shape == (1, 4, 8) and "reg_token" in network.state_dict()
    with torch.no_grad():
        network.reg_token.normal_()
    assert (network(pixels) - features).abs().max() > 1e-3
    assert "reg_token" not in dinov2.DINOv2(8, 2, 2, patch=7, positions=2).state_dict(), "older files have none"


def test_dinov2_loads_a_folder_and_explains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra dinov2 is not installed")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 28, "patch_size": 14}
    for name, registers in (("Dinov2", 0), ("Dinov2WithRegisters", 4)):
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()
        model.save_pretrained(tmp_path / name)
        loaded = dinov2.pretrained(str(tmp_path / name))
        assert torch.equal(loaded.norm.weight, model.layernorm.weight) and loaded.registers == registers
    transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=24)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a vit model; expected one of"):
        dinov2.pretrained(str(tmp_path / "vit"))
    file = tmp_path / "Dinov2" / "model.safetensors"
    incomplete = {name: tensor for name, tensor in load_file(file).items() if name != "layernorm.bias"}
    save_file(incomplete, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack \['layernorm\.bias'\], which transformers filled at random"):
        dinov2.pretrained(str(tmp_path / "Dinov2"))
    for content in ({**incomplete, "layernorm.bias": torch.zeros(3)}, {}):
        save_file(content, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"truncated or do not fit|lack"):
            dinov2.pretrained(str(tmp_path / "Dinov2"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="truncated or do not fit its config.json"):
        dinov2.pretrained(str(tmp_path / "Dinov2"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf download .*copy the folder here"):
        dinov2.pretrained(str(tmp_path / "nowhere"))


def test_dinov2_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install transformers"):
        dinov2.pretrained()


@pytest.mark.parametrize("final_norm", [True, False])
def test_frozen_features_may_leave_out_the_last_norm(tmp_path: Path, final_norm: bool) -> None:
    trained = SlotAutoencoder(PatchConfig(slot_dim=8, image_size=16, depth=1, heads=2, decoder_width=8))
    trained.save(tmp_path)
    config = SmallVideoSAURConfig(
        n_slots=2, slot_dim=8, image_size=16, width=8, depth=1, heads=2, positions=2, decoder_width=8,
        final_norm=final_norm, weights=str(tmp_path),
    )  # fmt: skip
    encoder = config.build()[0]
    encoder.load_weights()
    own, other = encoder.backbone.state_dict(), trained.encoder.backbone.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert set(other) - set(own) == (set() if final_norm else {"norm.weight", "norm.bias"})
