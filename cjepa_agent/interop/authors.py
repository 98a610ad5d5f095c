"""The weights of C-JEPA's authors, of VideoSAUR and of StoSAVi, under the names and sizes used here.

Sizes are read off the tensors; what tensors do not tell (slots, heads) is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.dinov2 import from_transformers
from cjepa_agent.encoders.kinds import AnyEncoderConfig
from cjepa_agent.encoders.stosavi import StoSAViConfig
from cjepa_agent.encoders.videosaur import VideoSAURConfig
from cjepa_agent.predictors.released import ReleasedPredictor, ReleasedPredictorConfig
from cjepa_agent.tensors import check_tensors

Tensors = Mapping[str, Tensor]
Renaming = Sequence[tuple[str, str]]
HISTORY = {4: 3, 16: 6}  # frames of history by rows of the time embedding: Push-T 3 + 1, CLEVRER 6 + 10
PIXELS_PER_SIDE = 14  # patches along a side where there is no decoder to tell
HEAD_WIDTH = 64  # channels per attention head of every DINOv2

PREDICTOR: Renaming = (
    (r"^(?:.*\.)?predictor\.(?=mask_token|time_pos_embed|id_projector|transformer|to_out)", ""),
    (r"^(?:.*\.)?(action|proprio)_encoder\.patch_embed\.", r"\1_encoder."),
)
VIDEOSAUR: Renaming = (
    (r"^decoder\.module\.allocator\.blocks\.", "decoder.allocator."),
    (r"^decoder\.module\.renderer\.layers\.", "decoder.renderer."),
    (r"^decoder\.module\.", "decoder."),
    (r"^(?:.*\.)?initializer\.(?:\w+\.)?(mean|log_std)$", r"encoder.\1"),
    (r"^(?:.*\.)?encoder\.(?:backbone\.)?module\.output_transform\.layers\.", "encoder.output_transform."),
    (r"^(?:.*\.)?encoder\.(?:backbone\.)?module\.backbone\.", "encoder.backbone."),
    (r"^(?:.*\.)?(?:processor|slot_attention)\.(?:backbone\.)?module\.corrector\.", "encoder.corrector."),
    (r"^(?:.*\.)?(?:processor|slot_attention)\.(?:backbone\.)?module\.predictor\.blocks\.0\.", "encoder.transition."),
)
STOSAVI: Renaming = (
    (r"^(?:model\.)?(?=decoder\.|decoder_pos_embedding\.)", "decoder."),
    (r"^(?:model\.)?(?=encoder|init_latents|kernel_dist_layer|slot_attention|predictor)", "encoder."),
)
STOSAVI_UNUSED = re.compile(r"(^|\.)(prior_slot_layer\..*|(encoder|decoder)_pos_embedding\.grid)$")


@dataclass(frozen=True)
class Part:
    """A network found in a file, with its tensors by the names used here.

    Attributes:
        tensors: of the network.
        path: where they are from.
    """

    tensors: dict[str, Tensor]
    path: Path


def split(path: Path, tensors: Tensors) -> dict[str, Part]:
    """The networks in a file: some of ``predictor``, ``videosaur`` and ``stosavi``.

    Raises:
        ValueError: it holds none of them, or tensors that belong to none.
    """
    renamed = {
        "predictor": _claim(PREDICTOR, _with_prefix(tensors)),
        "videosaur": _claim(VIDEOSAUR, tensors),
    }
    if any(name.endswith("kernel_dist_layer.0.weight") for name in tensors):
        used = {name: tensor for name, tensor in tensors.items() if not STOSAVI_UNUSED.search(name)}
        renamed = {"stosavi": _claim(STOSAVI, used)}
        tensors = used
    elif "time_pos_embed" not in [name.rpartition(".")[2] for name in tensors]:
        del renamed["predictor"]
    found = {kind: names for kind, names in renamed.items() if names}
    if not found:
        raise ValueError(
            f"{path} holds no network that is known here: expected a C-JEPA predictor (time_pos_embed, mask_token, "
            f"transformer.*), VideoSAUR (initializer.*, processor.module.*) or StoSAVi (init_latents, "
            f"kernel_dist_layer.*); got {sorted(tensors)[:6]}"
        )
    claimed = {old for names in found.values() for old in names.values()}
    original = {f"predictor.{name}": name for name in tensors} if _is_bare(tensors) else {n: n for n in tensors}
    if foreign := sorted(original[name] for name in original if name not in claimed):
        raise ValueError(f"{path} has unexpected tensors {foreign[:8]} beside {' and '.join(found)}")
    source = _with_prefix(tensors)
    return {
        kind: Part({new: source[old].float().contiguous() for new, old in names.items()}, path)
        for kind, names in found.items()
    }


def _is_bare(tensors: Tensors) -> bool:
    """Whether these are a predictor's tensors without a prefix."""
    return "time_pos_embed" in tensors


def _with_prefix(tensors: Tensors) -> Tensors:
    return {f"predictor.{name}": tensor for name, tensor in tensors.items()} if _is_bare(tensors) else tensors


def _claim(renaming: Renaming, tensors: Tensors) -> dict[str, str]:
    """New name to old name, of the tensors that one of the rules knows."""
    claimed = {}
    for name in tensors:
        for pattern, replacement in renaming:
            new, count = re.subn(pattern, replacement, name)
            if count:
                claimed[new] = name
                break
    return claimed


def released_predictor(part: Part, n_slots: int, heads: int, history: int | None) -> ReleasedPredictor:
    """The predictor of a file, in evaluation mode.

    Args:
        part: what ``split`` found.
        n_slots: S.
        heads: attention heads.
        history: most frames of history; None where the rows of the time embedding tell.

    Raises:
        ValueError: tensors are missing, of the wrong size or not finite, or the history is not told.
    """
    tensors = {name: t.squeeze(-1) if name.endswith("_encoder.weight") else t for name, t in part.tensors.items()}
    _need(part.path, tensors, {"time_pos_embed": 3, "transformer.layers.0.1.1.weight": 2})
    rows, width = tensors["time_pos_embed"].shape[1], tensors["time_pos_embed"].shape[-1]
    frames = history or HISTORY.get(rows)
    if frames is None or not 0 < frames < rows:
        raise ValueError(
            f"{part.path} has a time embedding of {rows} rows, of history and future; give history= as "
            f"1 to {rows - 1}, got {history}"
        )
    config = ReleasedPredictorConfig(
        depth=_count(tensors, r"transformer\.layers\.(\d+)\."),
        width=width,
        heads=heads,
        mlp=tensors["transformer.layers.0.1.1.weight"].shape[0],
        history=frames,
        future=rows - frames,
        matching="action_encoder.weight" in tensors,  # the authors match while they plan, not in CLEVRER's rollouts
    )
    sizes = [
        tensors[name].shape[-1] if name in tensors else 0
        for name in ("proprio_encoder.weight", "action_encoder.weight")
    ]
    predictor = config.build(n_slots, width, *sizes).eval()
    check_tensors(part.path, tensors, predictor.state_dict())
    predictor.load_state_dict(tensors, strict=True)
    return predictor


def slot_autoencoder(kind: str, part: Part, n_slots: int | None) -> tuple[SlotAutoencoder, bool]:
    """The encoder of a file, in evaluation mode, and whether the file has its decoder (else that is random).

    Args:
        kind: ``videosaur`` or ``stosavi``.
        part: what ``split`` found.
        n_slots: S; StoSAVi's tensors tell.

    Raises:
        ValueError: tensors are missing, of the wrong size or not finite, or the slots are not told.
    """
    tensors = _videosaur_backbone(part) if kind == "videosaur" else part.tensors
    config = (
        _videosaur_config(part, tensors, n_slots) if kind == "videosaur" else _stosavi_config(part, tensors, n_slots)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = SlotAutoencoder(config).eval()
    state = autoencoder.state_dict()
    has_decoder = any(name.startswith("decoder.") for name in tensors)
    if not has_decoder:
        tensors = {**tensors, **{name: value for name, value in state.items() if name.startswith("decoder.")}}
    check_tensors(part.path, tensors, state)
    autoencoder.load_state_dict(tensors, strict=True)
    return autoencoder, has_decoder


def _videosaur_backbone(part: Part) -> dict[str, Tensor]:
    """The tensors with the backbone's under timm's names; without its last norm where it came from timm."""
    prefix = "encoder.backbone."
    backbone = {n.removeprefix(prefix): t for n, t in part.tensors.items() if n.startswith(prefix)}
    rest = {n: t for n, t in part.tensors.items() if not n.startswith(prefix)}
    if any(name.startswith("model.") for name in backbone):
        names = {name.removeprefix("model."): tensor for name, tensor in backbone.items()}
        backbone = {name: tensor for name, tensor in names.items() if not name.startswith("norm.")}
    else:
        backbone = from_transformers(backbone)
    return {**rest, **{prefix + name: tensor for name, tensor in backbone.items()}}


def _videosaur_config(part: Part, tensors: Tensors, n_slots: int | None) -> AnyEncoderConfig:
    prefix = "encoder.backbone."
    _need(part.path, tensors, {f"{prefix}pos_embed": 3, f"{prefix}patch_embed.proj.weight": 4, "encoder.mean": 1})
    if n_slots is None:
        raise ValueError(
            f"the tensors of {part.path} do not tell the number of slots; set n_slots=4 (Push-T) or 7 (CLEVRER)"
        )
    width, patch = (
        tensors[f"{prefix}patch_embed.proj.weight"].shape[0],
        tensors[f"{prefix}patch_embed.proj.weight"].shape[-1],
    )
    place, output = tensors.get("decoder.pos_emb"), tensors.get("decoder.output_transform.weight")
    side = PIXELS_PER_SIDE if place is None else math.isqrt(place.shape[1])
    config = VideoSAURConfig(
        n_slots=n_slots,
        slot_dim=tensors["encoder.mean"].shape[-1],
        image_size=side * patch,
        patch=patch,
        width=width,
        depth=_count(tensors, r"encoder\.backbone\.blocks\.(\d+)\."),
        heads=max(1, width // HEAD_WIDTH),
        positions=math.isqrt(tensors[f"{prefix}pos_embed"].shape[1] - 1),
        final_norm=f"{prefix}norm.weight" in tensors,
    )
    if output is None:
        return config
    return replace(config, outputs=output.shape[0], decoder_width=output.shape[1])


def _stosavi_config(part: Part, tensors: Tensors, n_slots: int | None) -> AnyEncoderConfig:
    _need(part.path, tensors, {"encoder.init_latents": 3, "encoder.encoder.0.0.weight": 4})
    slots, dim = tensors["encoder.init_latents"].shape[1:]
    if n_slots not in (None, slots):
        raise ValueError(f"{part.path} has {slots} slots, n_slots is {n_slots}")
    return StoSAViConfig(n_slots=slots, slot_dim=dim, width=tensors["encoder.encoder.0.0.weight"].shape[0])


def _need(path: Path, tensors: Tensors, axes: Mapping[str, int]) -> None:
    """Raise ValueError unless there are tensors of these names with at least as many axes."""
    if missing := [name for name, least in axes.items() if name not in tensors or tensors[name].ndim < least]:
        raise ValueError(
            f"{path} lacks the tensors {missing}, or they have fewer axes than {axes}; "
            f"its download may be incomplete, or it is of another model"
        )


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the highest number that ``pattern`` finds in the names."""
    return 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=0)
