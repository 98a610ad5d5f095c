"""Files as C-JEPA's authors, VideoSAUR and StoSAVi write them, small, with random numbers: names and shapes only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
DIM = 32
WRAPPED = {"processor": "slot_attention"}


def _linear(names: Tensors, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
    names[f"{name}.weight"] = torch.randn(outputs, inputs) * inputs**-0.5
    if bias:
        names[f"{name}.bias"] = 0.1 * torch.randn(outputs)


def _norm(names: Tensors, name: str, width: int) -> None:
    names[f"{name}.weight"], names[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)


def _gru(names: Tensors, name: str, dim: int) -> None:
    for kind in ("ih", "hh"):
        names[f"{name}.weight_{kind}"] = torch.randn(3 * dim, dim) * dim**-0.5
        names[f"{name}.bias_{kind}"] = 0.1 * torch.randn(3 * dim)


def predictor(prefix: str = "", rows: int = 4, depth: int = 2, mlp: int = 48) -> Tensors:
    names: Tensors = {"mask_token": torch.randn(1, 1, DIM), "time_pos_embed": torch.randn(1, rows, 1, DIM)}
    _linear(names, "id_projector", DIM, DIM)
    _norm(names, "transformer.norm", DIM)
    for layer in range(depth):
        at = f"transformer.layers.{layer}"
        names[f"{at}.0.in_proj_weight"] = torch.randn(3 * DIM, DIM) * DIM**-0.5
        names[f"{at}.0.in_proj_bias"] = 0.1 * torch.randn(3 * DIM)
        _linear(names, f"{at}.0.out_proj", DIM, DIM)
        _norm(names, f"{at}.1.0", DIM)
        _linear(names, f"{at}.1.1", DIM, mlp)
        _linear(names, f"{at}.1.4", mlp, DIM)
    _linear(names, "to_out", DIM, DIM)
    return {prefix + name: tensor for name, tensor in names.items()}


def embedders(prefix: str = "model.") -> Tensors:
    names: Tensors = {}
    for name, width in (("action", 10), ("proprio", 4)):
        names[f"{prefix}{name}_encoder.patch_embed.weight"] = 0.2 * torch.randn(DIM, width, 1)
        names[f"{prefix}{name}_encoder.patch_embed.bias"] = torch.randn(DIM)
    return names


def _backbone(hf: bool, width: int = 64, depth: int = 2, positions: int = 2) -> Tensors:
    names: Tensors = {}
    if hf:
        names["embeddings.cls_token"], names["embeddings.mask_token"] = torch.randn(1, 1, width), torch.zeros(1, width)
        names["embeddings.position_embeddings"] = torch.randn(1, 1 + positions**2, width)
        at = "embeddings.patch_embeddings.projection"
    else:
        names["cls_token"], names["pos_embed"] = torch.randn(1, 1, width), torch.randn(1, 1 + positions**2, width)
        at = "patch_embed.proj"
    names[f"{at}.weight"], names[f"{at}.bias"] = 0.05 * torch.randn(width, 3, 14, 14), torch.randn(width)
    for layer in range(depth):
        at = f"encoder.layer.{layer}" if hf else f"blocks.{layer}"
        _norm(names, f"{at}.norm1", width)
        _norm(names, f"{at}.norm2", width)
        if hf:
            for part in ("query", "key", "value"):
                _linear(names, f"{at}.attention.attention.{part}", width, width)
            _linear(names, f"{at}.attention.output.dense", width, width)
        else:
            _linear(names, f"{at}.attn.qkv", width, 3 * width)
            _linear(names, f"{at}.attn.proj", width, width)
        _linear(names, f"{at}.mlp.fc1", width, 4 * width)
        _linear(names, f"{at}.mlp.fc2", 4 * width, width)
        for scale in (1, 2):
            names[f"{at}.layer_scale{scale}.lambda1" if hf else f"{at}.ls{scale}.gamma"] = torch.rand(width)
    _norm(names, "layernorm" if hf else "norm", width)
    return names


def _block(names: Tensors, at: str, cross: bool) -> None:
    if cross:
        _linear(names, f"{at}.self_attn.q", DIM, DIM)
        _linear(names, f"{at}.self_attn.kv", DIM, 2 * DIM)
    else:
        _linear(names, f"{at}.self_attn.qkv", DIM, 3 * DIM)
    _linear(names, f"{at}.self_attn.out_proj", DIM, DIM)
    _linear(names, f"{at}.linear1", DIM, 4 * DIM)
    _linear(names, f"{at}.linear2", 4 * DIM, DIM)
    _norm(names, f"{at}.norm1", DIM)
    _norm(names, f"{at}.norm2", DIM)


def videosaur(hf: bool = True, width: int = 64) -> Tensors:
    """28 px frames of 2 x 2 patches."""
    names: Tensors = {
        "initializer.mean": torch.randn(1, 1, DIM),
        "initializer.log_std": torch.full((1, 1, DIM), -1.0),
    }
    infix = "encoder.module.backbone." + ("" if hf else "model.")
    names |= {infix + name: tensor for name, tensor in _backbone(hf, width).items()}
    _norm(names, "encoder.module.output_transform.layers.0", width)
    _linear(names, "encoder.module.output_transform.layers.1", width, 2 * width)
    _linear(names, "encoder.module.output_transform.layers.3", 2 * width, DIM)
    for part in ("to_k", "to_v", "to_q"):
        _linear(names, f"processor.module.corrector.{part}", DIM, DIM, bias=False)
    _gru(names, "processor.module.corrector.gru", DIM)
    _norm(names, "processor.module.corrector.norm_features", DIM)
    _norm(names, "processor.module.corrector.norm_slots", DIM)
    _block(names, "processor.module.predictor.blocks.0", cross=False)
    for layer in range(3):
        _block(names, f"decoder.module.allocator.blocks.{layer}", cross=True)
    for layer, inputs in ((0, DIM), (2, 24), (4, 24)):
        _linear(names, f"decoder.module.renderer.layers.{layer}", inputs, 24)
    for part in ("to_q", "to_k"):
        _linear(names, f"decoder.module.{part}", DIM, DIM, bias=False)
    for part in ("norm_k", "norm_q", "norm_memory"):
        _norm(names, f"decoder.module.{part}", DIM)
    _linear(names, "decoder.module.output_transform", 24, width + 4)
    names["decoder.module.pos_emb"] = torch.randn(1, 4, DIM)
    return names


def stosavi(slots: int = 3, width: int = 8) -> Tensors:
    names: Tensors = {"init_latents": torch.randn(1, slots, DIM)}
    _linear(names, "kernel_dist_layer.0", DIM, 2 * DIM)
    _linear(names, "prior_slot_layer.0", DIM, DIM)
    _norm(names, "prior_slot_layer.1", DIM)
    _linear(names, "prior_slot_layer.3", DIM, DIM)
    at = "slot_attention"
    _norm(names, f"{at}.norm_inputs", DIM)
    _norm(names, f"{at}.project_q.0", DIM)
    for part in ("project_q.1", "project_k", "project_v"):
        _linear(names, f"{at}.{part}", DIM, DIM, bias=False)
    _gru(names, f"{at}.gru", DIM)
    _norm(names, f"{at}.mlp.0", DIM)
    _linear(names, f"{at}.mlp.1", DIM, 2 * DIM)
    _linear(names, f"{at}.mlp.3", 2 * DIM, DIM)
    for layer in range(4):
        convolution = nn.Conv2d(width if layer else 3, width, 5)
        names |= {f"encoder.{layer}.0.{k}": v.detach() for k, v in convolution.named_parameters()}
        transposed = nn.ConvTranspose2d(width if layer else DIM, width, 5)
        names |= {f"decoder.{layer}.0.{k}": v.detach() for k, v in transposed.named_parameters()}
    names |= {f"decoder.4.{k}": v.detach() for k, v in nn.Conv2d(width, 4, 1).named_parameters()}
    for part, channels, size in (("encoder", width, 64), ("decoder", DIM, 8)):
        names[f"{part}_pos_embedding.grid"] = torch.zeros(1, size, size, 4)
        _linear(names, f"{part}_pos_embedding.dense", 4, channels)
    _norm(names, "encoder_out_layer.0", width)
    _linear(names, "encoder_out_layer.1", width, DIM)
    _linear(names, "encoder_out_layer.3", DIM, DIM)
    _norm(names, "predictor.ln", DIM)
    _linear(names, "predictor.mlp.0", DIM, 2 * DIM)
    _linear(names, "predictor.mlp.2", 2 * DIM, DIM)
    return names


def world_model() -> Tensors:
    """The tensors of the pickled Push-T world model: frozen encoder in wrappers, predictor, embedders; no decoder."""
    names = predictor("model.predictor.") | embedders()
    for name, tensor in videosaur().items():
        part, _, rest = name.partition(".")
        if part != "decoder":
            names[f"model.{WRAPPED.get(part, part)}.backbone.{rest}"] = tensor
    return names


class Box(nn.Module):
    """Stands for any module class of somebody else's package."""


def module_of(tensors: Tensors) -> nn.Module:
    """A module with these tensors, nested by the dots of their names."""
    root = Box()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node: nn.Module = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Box())
            node = node._modules[part]  # type: ignore[assignment]
        node.register_parameter(last, nn.Parameter(tensor))
    return root
