"""A JSON file of measurements that a killed benchmark resumes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cjepa_agent.files import as_json, read_json, write_json
from cjepa_agent.provenance import provenance
from cjepa_agent.train import TrainConfig
from envs.files import atomic

if TYPE_CHECKING:  # it comes with an extra
    from matplotlib.figure import Figure

OTHER_STAGES = ("encoder", "slot_training", "aloe", "vqa")  # settings that no predictor depends on


class Report:
    """Measurements by name, all of one configuration; the file is written after each.

    Several processes may measure different things for one file: it is read again before each is begun or added.

    Args:
        path: the JSON file; what it holds is kept.
        config: settings that the measurements depend on.
        key: what the measurements are called in the file.

    Raises:
        ValueError: the file holds measurements of another configuration.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], key: str) -> None:
        self.path, self._key = path, key
        self._config = as_json(config)
        _ = self.entries

    @property
    def entries(self) -> dict[str, Any]:
        """Measurements in the file, as JSON gives them back."""
        found = read_json(self.path) if self.path.is_file() else {"config": self._config, self._key: {}}
        if found.get("config") != self._config:
            raise ValueError(
                f"{self.path} holds results of {found.get('config')}, these are {self._config}; "
                f"give another out, or remove it"
            )
        entries: dict[str, Any] = found[self._key]
        return entries

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add or replace a measurement, with where it comes from unless it tells that, and write the file."""
        measured = as_json({"provenance": provenance(), **entry})
        write_json(self.path, {"config": self._config, self._key: {**self.entries, name: measured}})

    @property
    def averages(self) -> str:
        """What a page says where moving averages of weights were scored; else nothing."""
        decay = self._config["trainer"]["ema"]
        if not decay:
            return ""
        return (
            f" **Scored are moving averages of the weights** (`trainer.ema={decay}`), which lag behind trainings as "
            "short as these, further in some systems than in others; rows tell little about the systems themselves "
            "([LOG.md](LOG.md), *averages that lag behind*)."
        )

    @property
    def source(self) -> str:
        """The file, as a page that stands in the repository names it."""
        return self.path.name if self.path.is_absolute() else self.path.as_posix()

    def missing(self, names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
        """Trainings that are not in the file, a seed of all names after the other."""
        entries = self.entries
        return [(name, seed) for seed in seeds for name in names if _key(name, seed) not in entries]

    def fill(
        self, names: Sequence[str], seeds: Sequence[int], measure: Callable[[str, int], Mapping[str, Any]]
    ) -> None:
        """Measure what is missing."""
        for name, seed in tqdm(self.missing(names, seeds), unit="training"):
            if self.missing([name], [seed]):
                self.add(_key(name, seed), measure(name, seed))

    def trainings(self, names: Sequence[str] = ()) -> list[Any]:
        """The entries of all trainings in the file, name by name, those given first."""
        entries = list(self.entries.values())
        order = list(dict.fromkeys([*names, *(entry["system"] for entry in entries)]))
        return sorted(entries, key=lambda entry: (order.index(entry["system"]), entry["training_seed"]))

    def of(self, name: str, seed: int) -> Any:
        """The entry of a training, None if it is not in the file."""
        return self.entries.get(_key(name, seed))


def _key(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def require_trainings(field: str, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises ValueError unless there are names, those of ``field``, and training seeds of 0 or more."""
    if not names or not seeds or min(seeds) < 0:
        raise ValueError(
            f"{field} and training_seeds must not be empty and seeds at least 0, got {list(names)} and {list(seeds)}"
        )


def in_own_folder(settings: TrainConfig, name: str) -> TrainConfig:
    """A training of a predictor whose folder, within ``settings.out``, has a name that only these settings have."""
    values = {key: value for key, value in asdict(settings).items() if key not in OTHER_STAGES}
    return replace(settings, out=settings.out / f"{name}-{digest(values)}")


def digest(settings: Any) -> str:
    """Twelve hexadecimal digits that no other settings have."""
    return hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:12]


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table as Markdown writes it."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *cells])


def write_page(path: Path, text: str) -> None:
    """Write a page at once."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure as PNG at once."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
