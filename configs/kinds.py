"""Dataclasses from plain values, as files and command lines hold them, strictly; which of several, a ``kind`` tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import dacite

T = TypeVar("T")


def _integer(value: Any) -> Any:
    return str(value) if isinstance(value, bool) else value


def _number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return str(value)


def _text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _path(value: Any) -> Any:
    return Path(str(value)) if type(value) is int or isinstance(value, str) else value


# What fits a field's type, converted; what does not becomes or stays something that the field refuses by its name.
# Names that are made of digits come as integers.
STRICT = dacite.Config(strict=True, type_hooks={int: _integer, float: _number, str: _text, Path: _path})


def of_kind(field: str, kinds: Mapping[str, type[T]], values: Any, default: str | None = None) -> T:
    """The dataclass that ``values`` are of, by their ``kind``, filled; what they lack takes its default.

    Args:
        field: what they are, for messages.
        kinds: dataclasses by kind.
        values: plain ones.
        default: the kind of values that tell none.

    Raises:
        ValueError: another kind, or unknown keys, wrong types or values out of range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{field} is {values!r}; expected keys and values")
    kind = str(values.get("kind", default))
    if kind not in kinds:
        raise ValueError(f"{field}.kind is {kind!r}; expected one of {list(kinds)}")
    try:
        return dacite.from_dict(kinds[kind], values, STRICT)
    except dacite.UnexpectedDataError as error:
        raise ValueError(
            f"{field}.kind={kind} has no {sorted(error.keys)}; choose a kind with all its keys by {field}={kind}"
        ) from error
    except dacite.DaciteError as error:
        raise ValueError(f"{field}: {error}") from error
