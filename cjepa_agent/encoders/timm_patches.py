"""Patch tokens of any backbone that ``timm`` knows (Wightman 2019), in place of DINOv2's; see ``patches``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cjepa_agent.encoders.dinov2 import Backbone
from cjepa_agent.encoders.patches import PatchTokenConfig
from cjepa_agent.tensors import read_tensors

PUBLISHED = "timm"  # in place of a folder of weights


@dataclass(frozen=True)
class TimmPatchConfig(PatchTokenConfig):
    """A backbone of ``timm``, frozen or learned; the sizes are those of the model, and an error tells them.

    Attributes:
        kind: ``timm``.
        model: name of the model, such as ``resnet18.a1_in1k``; ``timm.list_models(pretrained=True)`` lists them.
        patch: side of a patch, px; for a convolutional model, how many times smaller its last feature map is.
        weights: ``timm`` for those that timm knows for the model, or a folder with them; empty to learn all.
    """

    kind: str = "timm"
    slot_dim: int = 384
    image_size: int = 196
    patch: int = 14
    decoder_width: int = 256
    weights: str = PUBLISHED
    model: str = "vit_small_patch14_dinov2.lvd142m"

    def backbone(self) -> TimmBackbone:
        """See ``PatchTokenConfig``; raises ValueError without timm, or where the sizes are not those of the model."""
        return TimmBackbone(self)

    def pretrained(self) -> TimmBackbone:
        """See ``PatchTokenConfig``."""
        source = {} if self.weights == PUBLISHED else {"pretrained_cfg_overlay": self._from_folder()}
        try:
            return TimmBackbone(self, pretrained=True, **source)
        except RuntimeError as error:
            raise ValueError(f"{self.weights}: these are not the weights of {self.model}: {error}") from error
        except OSError as error:
            name = _known(self.model).hf_hub_id
            raise FileNotFoundError(
                f"the weights of {self.model} are neither in the cache nor can the Hugging Face Hub be reached; where "
                f"it can, run `hf download {name} --local-dir {self.model}`, copy the folder here and set "
                f"encoder.weights to its path ({error})"
            ) from error

    def _from_folder(self) -> dict[str, Any]:
        """What ``timm`` should take as its own description of weights in a folder, with or without a classifier."""
        file = Path(self.weights) / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"no file at {file}; encoder.weights is {PUBLISHED}, a folder with model.safetensors, or empty"
            )
        tensors = read_tensors(file)
        named = _known(self.model).classifier or ()
        classifiers = (named,) if isinstance(named, str) else named
        has_one = any(f"{name}.weight" in tensors for name in classifiers)
        return {"state_dict": tensors, **({} if has_one else {"num_classes": 0})}


class TimmBackbone(Backbone):
    """A model of ``timm`` without its classifier.

    Args:
        config: which, and the sizes that it should have.
        source: of the weights, for ``timm.create_model``; none for random ones.

    Raises:
        ValueError: timm is not installed, has no such model, or one of other sizes.
    """

    def __init__(self, config: TimmPatchConfig, **source: Any) -> None:
        super().__init__()
        # Vision transformers are built for one size of frames, convolutions take any.
        sizes = {"img_size": config.image_size} if _known(config.model).fixed_input_size else {}
        # With its classifier, for timm overlooks missing and foreign tensors where the number of classes is another.
        self.network = _timm().create_model(config.model, **sizes, **source)
        self.network.reset_classifier(0)
        self.patches = config.n_slots
        self.mean, self.deviation = self.network.default_cfg["mean"], self.network.default_cfg["std"]
        width, patch = self.network.num_features, self.network.feature_info[-1]["reduction"]
        if (width, patch) != (config.slot_dim, config.patch):
            raise ValueError(
                f"{config.model} has tokens of {width} numbers for {patch} px; set encoder.slot_dim={width} "
                f"encoder.patch={patch} and encoder.image_size to a multiple of that, got {config.slot_dim}, "
                f"{config.patch} and {config.image_size}"
            )

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, patches, width), row by row, of frames (B, 3, H, W), normalised."""
        features: Tensor = self.network.forward_features(frames)
        if features.ndim == 3:  # tokens of classes and registers, which some models do not count, are before patches
            return features[:, -self.patches :]
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)


def _known(model: str) -> Any:
    """What ``timm`` knows of a model; raises ValueError if nothing."""
    timm = _timm()
    try:
        return timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(
            f"timm {timm.__version__} has no model {model!r}; timm.list_models() lists them ({error})"
        ) from error


def _timm() -> ModuleType:
    """The package, imported when it is needed, since it is optional and large."""
    try:
        return import_module("timm")
    except ImportError as error:
        raise ValueError(f"encoder=timm needs timm: pip install timm ({error})") from error
    except RuntimeError as error:
        raise ValueError(
            f"timm cannot be imported; install a torchvision of the same build as torch {torch.__version__} ({error})"
        ) from error
