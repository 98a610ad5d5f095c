"""DINOv2 (Oquab et al. 2023), the frozen backbone of VideoSAUR and DINO-WM: frames to patch features.

The network is written out here, under timm's parameter names, because those of ``transformers`` changed with its
version 5 and a converted checkpoint must not depend on the version installed. ``pretrained`` fetches Meta's weights
through ``transformers``; the test holds this network against theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import Dinov2Model

NORM_EPS = 1e-6
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = "facebook/dinov2-small"


def normalised(pixels: Tensor) -> Tensor:
    """Frames (B, 3, H, W) in [0, 1], ImageNet-normalised."""
    mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / deviation


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attn = _Attention(width, heads)
        self.ls1, self.ls2 = _LayerScale(width), _LayerScale(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "fc2": nn.Linear(mlp, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        hidden: Tensor = self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))
        return x + hidden


class DINOv2(nn.Module):
    """Vision transformer without registers.

    Args:
        width: channels of a patch.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch, px.
        positions: patches along a side that position embeddings were learned for (37 for Meta's weights); other sizes
            are interpolated.
        final_norm: apply the LayerNorm after the last block, as ``transformers`` does; the original VideoSAUR reads
            the last block itself.
    """

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 14,
        positions: int = 37,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch, self.positions = patch, positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + positions**2, width) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(_Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, NORM_EPS) if final_norm else nn.Identity()

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, patches, width), row by row, of frames (B, 3, H, W), ImageNet-normalised."""
        patches = self.patch_embed["proj"](frames)
        x = torch.cat([self.cls_token.expand(len(frames), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._position(patches.shape[-2:])
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)[:, 1:]
        return features

    def _position(self, size: torch.Size) -> Tensor:
        if tuple(size) == (self.positions, self.positions):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.positions, self.positions))
        grid = F.interpolate(grid.float(), tuple(size), mode="bicubic", align_corners=False).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


# Names of transformers, below version 5 and from it on, and what they are called here.
_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_PART = re.compile(r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.")


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``transformers`` ``Dinov2Model``, any version, under the names used here.

    Raises:
        ValueError: query, key or value of a layer is missing.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name == "embeddings.mask_token":  # for pre-training only
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if part := _PART.search(name):
            joint = f"{name[: part.start()]}.attn.qkv.{name[part.end() :]}"
            parts.setdefault(joint, {})[(part[1] or part[2])[0]] = tensor
        else:
            renamed[name] = tensor
    for name, three in parts.items():
        if three.keys() != {"q", "k", "v"}:
            raise ValueError(f"{name} lacks {sorted({'q', 'k', 'v'} - three.keys())} of query, key and value")
        renamed[name] = torch.cat([three["q"], three["k"], three["v"]])
    return renamed


def pretrained(name: str = SMALL) -> DINOv2:
    """Meta's weights from the Hugging Face Hub, or from a folder that ``save_pretrained`` wrote, in evaluation mode.

    Raises:
        ValueError: ``transformers`` is not installed, or the name is that of another kind of model.
        FileNotFoundError: neither the Hub nor the disk has it.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ValueError(f"DINOv2 comes through transformers: pip install 'cjepa-agent[dinov2]' ({error})") from error
    try:
        model = AutoModel.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights {name} are neither in the cache nor can the Hugging Face Hub be reached; where it can, run "
            f"`hf download {name} --local-dir dinov2-small`, copy the folder here and give its path ({error})"
        ) from error
    if model.config.model_type != "dinov2":
        raise ValueError(f"{name} is a {model.config.model_type} model; expected dinov2, for example {SMALL}")
    return of_transformers(model)


def of_transformers(model: Dinov2Model) -> DINOv2:
    """The same network as a ``transformers`` model, copied, in evaluation mode."""
    config, tensors = model.config, from_transformers(model.state_dict())
    positions = config.image_size // config.patch_size
    network = DINOv2(
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size, positions
    )
    network.load_state_dict(tensors, strict=True)
    return network.eval()
