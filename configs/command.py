"""Turns a dataclass and a function into a command: Hydra overrides in, a validated configuration out.

Defaults live in the dataclasses alone. Each dataclass is offered to Hydra as the ``default`` option of its group;
YAML files in the group's folder are named presets that change some of its values. A field may hold one of several
dataclasses: their defaults are then options of the group, too, each named by its ``kind``. A command may also have a
key that chooses between dataclasses, and with it which other keys there are (``Variants``).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import dacite
import hydra
from docstring_parser import parse
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from configs.kinds import STRICT, of_kind

T = TypeVar("T")


@dataclass(frozen=True)
class Variants(Generic[T]):
    """Dataclasses between which one key of a command chooses.

    Attributes:
        key: whose value is one of the names.
        schemas: dataclasses without groups, by name; the first is the default.
    """

    key: str
    schemas: Mapping[str, type[T]]


def command(
    name: str, schema: type[T] | Variants[T], function: Callable[[T], None], package: str = "cjepa_agent"
) -> Callable[[], None]:
    """The command-line entry of ``python -m <package>.<name>``.

    Args:
        name: the command's name.
        schema: top-level dataclass, whose dataclass fields become configuration groups; or several to choose from.
        function: called with the validated configuration.
        package: where the command's module lies.

    Returns:
        A function without arguments for ``if __name__ == "__main__"``. Errors of a user (ValueError, missing
        files) and killed workers are printed as one line and end the process with status 2.
    """
    register(name, schema)

    @hydra.main(version_base="1.3", config_path="pkg://configs", config_name=f"{name}_command")
    def compose(config: DictConfig) -> None:
        try:
            function(build(schema, config))
        except (ValueError, FileNotFoundError, FileExistsError, ChildProcessError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.exit(2)

    def main() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            sys.stdout.write(help_text(f"{package}.{name}", schema) + "\n")
            return
        sys.argv.extend(["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"])
        compose()

    return main


def register(name: str, schema: type[Any] | Variants[Any]) -> None:
    """Offer ``schema`` and its groups to Hydra."""
    store = ConfigStore.instance()
    defaults: list[Any] = []
    if isinstance(schema, Variants):
        for variant, variant_schema in schema.schemas.items():
            node = {schema.key: variant, **_plain(variant_schema())}
            store.store(group=schema.key, name=variant, node=node, package="_global_")
        defaults = [{schema.key: next(iter(schema.schemas))}, "_self_"]
        store.store(name=f"{name}_command", node={"defaults": defaults})
        return
    scalars = {}
    for field, value in _fields(schema):
        if dataclasses.is_dataclass(value):
            store.store(group=field, name="default", node=_plain(value))
            for kind, alternative in _kinds(schema, field).items():
                store.store(group=field, name=kind, node=_plain(alternative()))
            defaults.append({field: _choice(schema, field)})
        else:
            scalars[field] = _plain_value(value)
    store.store(name=f"{name}_command", node={"defaults": [*defaults, "_self_"], **scalars})


def _choice(schema: type[Any], field: str) -> str:
    presets: dict[str, str] = getattr(schema, "PRESETS", {})
    return presets.get(field, "default")


def _kinds(schema: type[Any], field: str) -> dict[str, type[Any]]:
    """By ``kind`` the dataclasses that a field may hold; empty if there is no choice."""
    types = get_args(get_type_hints(schema)[field])
    return {cls.kind: cls for cls in types} if types and all(map(dataclasses.is_dataclass, types)) else {}


def _fields(schema: type[Any]) -> list[tuple[str, Any]]:
    return [(f.name, getattr(schema(), f.name)) for f in dataclasses.fields(schema)]


def _plain(value: Any) -> dict[str, Any]:
    return {k: _plain_value(v) for k, v in dataclasses.asdict(value).items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _with_tuples(value: Any) -> Any:
    """Values from Hydra, which knows lists, as dataclasses have them."""
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def build(schema: type[T] | Variants[T], config: DictConfig) -> T:
    """The dataclass ``schema``, or the chosen one, filled from a composed configuration.

    Raises:
        ValueError: unknown or missing keys, values of the wrong type or out of range.
    """
    values: Any = _with_tuples(OmegaConf.to_container(config, resolve=True))
    if isinstance(schema, Variants):
        schema = schema.schemas[values.pop(schema.key)]
    hooks: dict[type[Any], Callable[[Any], Any]] = {
        hint: partial(of_kind, field, kinds)
        for field, hint in get_type_hints(schema).items()
        if (kinds := _kinds(schema, field))
    }
    try:
        return dacite.from_dict(schema, values, dataclasses.replace(STRICT, type_hooks={**STRICT.type_hooks, **hooks}))
    except dacite.WrongTypeError as error:
        key = str(error.field_path)
        given = reduce(getitem, key.split("."), values)
        choices = _choices(error.field_type)
        wanted = f"one of {choices}" if choices else getattr(error.field_type, "__name__", error.field_type)
        if wanted == "float":
            wanted = "a finite number"
        if "tuple" in str(error.field_type) and not isinstance(given, tuple):
            wanted = f"a list, such as {key}=[{given}]"
        raise ValueError(f"configuration: {key} is {given!r}; expected {wanted}") from error
    except dacite.DaciteError as error:
        raise ValueError(f"configuration: {error}") from error


def _choices(hint: Any) -> list[Any]:
    """What a type hint names one by one."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)]


def help_text(module: str, schema: type[Any] | Variants[Any]) -> str:
    """What a command does and every key with its default and meaning, from the dataclasses' docstrings."""
    lines = [f"python -m {module} [key=value ...]"]
    if isinstance(schema, Variants):
        for variant, variant_schema in schema.schemas.items():
            default = " (default)" if variant == next(iter(schema.schemas)) else ""
            lines += ["", f"{schema.key}={variant}{default}", *_help_of(variant_schema)]
    else:
        lines += _help_of(schema)
    return "\n".join(lines)


def _help_of(schema: type[Any]) -> list[str]:
    return ["", parse(schema.__doc__ or "").description or "", "", *_help_rows(schema(), "")]


def _help_rows(settings: Any, prefix: str) -> list[str]:
    """A line per key with its default, groups with the values of the option that is taken if none is given."""
    schema = type(settings)
    documented = [p for cls in reversed(schema.__mro__) for p in parse(cls.__doc__ or "").params]
    texts = {p.arg_name: " ".join((p.description or "").split()).replace("``", "") for p in documented}
    for key in list(texts):
        for part in key.split(","):
            texts[part.strip()] = texts[key]
    rows = []
    for field in (f.name for f in dataclasses.fields(schema)):
        value = getattr(settings, field)
        if dataclasses.is_dataclass(value):
            kinds, taken = _kinds(schema, field), _choice(schema, field)
            presets = sorted(p.stem for p in (Path(__file__).parent / field).glob("*.yaml"))
            value = _taken(value, field, kinds, taken)
            others = {kind: cls for kind, cls in kinds.items() if cls is not type(value)}
            options = "|".join(dict.fromkeys(["default", *kinds, *presets]))
            shown = f"  [{taken} if not given]" if taken != "default" else ""
            rows += ["", f"{prefix}{field}={options}{shown}  {texts.get(field, '')}"]
            rows += _help_rows(value, f"{prefix}{field}.")
            for kind, cls in others.items():
                rows += ["", f"{prefix}{field}={kind}  {parse(cls.__doc__ or '').description}"]
                rows += _help_rows(cls(), f"{prefix}{field}.")
        else:
            rows.append(f"  {prefix}{field}={_plain_value(value)}  {texts.get(field, '')}")
    return rows


def _taken(value: Any, field: str, kinds: Mapping[str, type[Any]], name: str) -> Any:
    """The option of a group by its name; ``value`` is the default."""
    from configs.presets import preset  # which needs this module

    if name in kinds:
        return kinds[name]()
    return value if name == "default" else preset(type(value), field, name)
