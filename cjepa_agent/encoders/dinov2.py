"""DINOv2 (Oquab et al. 2023), the frozen backbone of VideoSAUR and DINO-WM: frames to patch features.

The network is written out here, under timm's parameter names, because those of ``transformers`` changed with its
version 5 and a converted checkpoint must not depend on the version installed. ``pretrained`` fetches Meta's weights
through ``transformers``; the test holds this network against theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.tensors import check_tensors

if TYPE_CHECKING:
    from transformers import Dinov2Model, Dinov2WithRegistersModel
    from typing_extensions import Self

NORM_EPS = 1e-6
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL, SMALL_WITH_REGISTERS = "facebook/dinov2-small", "facebook/dinov2-with-registers-small"
FAMILY = ("dinov2", "dinov2_with_registers")  # what transformers calls them


class Backbone(nn.Module):
    """A network that turns frames into features of patches, learned here or taken from elsewhere and frozen.

    Attributes:
        mean, deviation: of each colour in 0..1, which frames are normalised with.
        heads: attention heads, which no tensor tells; 0 where the architecture has a name that does.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    deviation: tuple[float, ...] = IMAGENET_STD
    heads: int = 0

    def normalised(self, pixels: Tensor) -> Tensor:
        """Frames (B, 3, H, W) in [0, 1] as the network wants them."""
        mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def freeze_as(self, other: Backbone, source: str) -> None:
        """Take the weights of another network, which came from ``source``, and train no more.

        Raises:
            ValueError: it has other sizes.
        """
        tensors = self.read_of(other.state_dict())
        check_tensors(Path(source), tensors, self.state_dict())
        if other.heads != self.heads:
            raise ValueError(f"{source} has {other.heads} attention heads, encoder.heads is {self.heads}; set the same")
        self.load_state_dict(tensors, strict=True)
        self.requires_grad_(False).eval()

    def read_of(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of another network's tensors that this one has a place for."""
        return tensors

    def train(self, mode: bool = True) -> Self:
        """A frozen network stays in evaluation mode, so that its statistics stay as they are."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


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

    def keys(self, x: Tensor) -> Tensor:
        """What tokens (B, L, width) are found by, all heads together (B, L, width)."""
        keys: Tensor = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)[1]
        return keys

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        hidden: Tensor = self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))
        return x + hidden


class DINOv2(Backbone):
    """Vision transformer.

    Args:
        width: channels of a patch.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch, px.
        positions: patches along a side that position embeddings were learned for (37 for Meta's weights); other sizes
            are interpolated.
        final_norm: apply the LayerNorm after the last block, as ``transformers`` does; the original VideoSAUR reads
            the last block itself.
        registers: tokens beside those of patches, which belong to no place (Darcet et al. 2024, arXiv 2309.16588).
    """

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 14,
        positions: int = 37,
        final_norm: bool = True,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.patch, self.positions, self.heads, self.registers = patch, positions, heads, registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.randn(1, registers, width) * 0.02) if registers else None
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + positions**2, width) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(_Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, NORM_EPS) if final_norm else nn.Identity()

    def read_of(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See ``Backbone``: without its last norm all but that."""
        if isinstance(self.norm, nn.LayerNorm):
            return tensors
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, patches, width), row by row, of frames (B, 3, H, W), ImageNet-normalised."""
        return self._finished(self._before_last(frames))

    def with_keys(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The same features, and the keys (B, patches, width) of the last block's attention."""
        x = self._before_last(frames)
        last = cast(_Block, self.blocks[-1])
        return self._finished(x), last.keys(x)[:, 1 + self.registers :]

    def _before_last(self, frames: Tensor) -> Tensor:
        """All tokens as the last block sees them."""
        patches = self.patch_embed["proj"](frames)
        x = torch.cat([self.cls_token.expand(len(frames), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._position(patches.shape[-2:])
        if self.reg_token is not None:
            x = torch.cat([x[:, :1], self.reg_token.expand(len(frames), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def _finished(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.blocks[-1](x))[:, 1 + self.registers :]
        return features

    def _position(self, size: torch.Size) -> Tensor:
        if tuple(size) == (self.positions, self.positions):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.positions, self.positions)).float()
        # Meta's networks with registers were trained with smoothed embeddings, those without were not.
        grid = F.interpolate(grid, tuple(size), mode="bicubic", align_corners=False, antialias=self.registers > 0)
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype).flatten(2).transpose(1, 2)], dim=1)


# Names of transformers, below version 5 and from it on, and what they are called here.
_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
PRETRAINING_ONLY = "embeddings.mask_token"
_PART = re.compile(r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.")


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a DINOv2 of ``transformers``, any version, under the names used here.

    Raises:
        ValueError: query, key or value of a layer is missing.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name == PRETRAINING_ONLY:
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
        raise ValueError(f"DINOv2 comes through transformers: pip install transformers ({error})") from error
    try:
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights {name} are truncated or do not fit its config.json: {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"the weights {name} are neither in the cache nor can the Hugging Face Hub be reached; where it can, run "
            f"`hf download {name} --local-dir {Path(name).name}`, copy the folder here and give its path ({error})"
        ) from error
    if model.config.model_type not in FAMILY:
        raise ValueError(f"{name} is a {model.config.model_type} model; expected one of {FAMILY}, for example {SMALL}")
    if missing := sorted(set(loading["missing_keys"]) - {PRETRAINING_ONLY}):
        raise ValueError(f"the weights {name} lack {missing}, which transformers filled at random; fetch them again")
    return of_transformers(model)


def of_transformers(model: Dinov2Model | Dinov2WithRegistersModel) -> DINOv2:
    """The same network as a ``transformers`` model, copied, in evaluation mode.

    Raises:
        ValueError: its layers are of another kind, as those of DINOv2's giant are.
    """
    config, tensors = model.config, from_transformers(model.state_dict())
    positions = config.image_size // config.patch_size
    network = DINOv2(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.patch_size,
        positions,
        registers=getattr(config, "num_register_tokens", 0),
    )
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"this {config.model_type} has other layers than DINOv2's small to large: {error}") from error
    return network.eval()
