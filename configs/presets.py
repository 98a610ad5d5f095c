"""Named presets outside of Hydra: the same YAML files, for use from Python."""

from __future__ import annotations

from importlib import resources
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from configs.command import build

T = TypeVar("T")


def preset(schema: type[T], group: str, name: str) -> T:
    """``schema`` with the values of ``configs/<group>/<name>.yaml``; ``"default"`` is the dataclass as it is.

    Raises:
        ValueError: no such preset, or one that does not fit the schema.
    """
    if name == "default":
        return schema()
    folder = resources.files("configs") / group
    known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if name not in known:
        raise ValueError(f"unknown {group} preset {name!r}; expected one of {['default', *known]}")
    values = OmegaConf.create((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    if not isinstance(values, DictConfig):
        raise ValueError(f"configs/{group}/{name}.yaml is not a mapping")
    begun = values.pop("defaults", ["default"])[0]
    if begun not in ("default", getattr(schema, "kind", "default")):
        raise ValueError(f"{group} preset {name!r} is of the kind {begun!r}, not {schema.__name__}")
    return build(schema, values)
