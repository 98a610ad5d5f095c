"""What all collections share: parts that are made on all cores, outlive a kill, and are merged into one file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray
from tqdm import tqdm

from cjepa_agent.data.episodes import SPLITS, EpisodeFile, write_episodes
from cjepa_agent.files import as_json, read_json, write_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import package_version

Episode = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Collection(ABC):
    """Settings of a collection of episodes, which end up in one episode file.

    Attributes:
        out: what is made; unfinished parts wait in the folder ``<out>.parts``.
        seed: of everything; each episode draws from a random stream of its own.
        workers: processes; 0 for one per core.
    """

    out: Path = field(default_factory=cache_folder)
    seed: int = 0
    workers: int = 0

    UNIT: ClassVar[str] = "episode"
    SHARD: ClassVar[int]  # episodes per part; what a kill can cost each worker

    def __post_init__(self) -> None:
        if not self.out.name:
            raise ValueError(f"out must be the name of what is made, got {str(self.out)!r}")
        self._require(seed=0, workers=0)

    def _require(self, **least: int) -> None:
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, got {getattr(self, name)}")

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of episodes."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """What the episode file keeps of each episode."""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """What the result follows from, kept as the episode file's attributes; ``versions`` are those of packages.

        Raises:
            FileNotFoundError: something that it follows from is not there.
        """

    @abstractmethod
    def maker(self) -> Callable[[int], Episode]:
        """What a worker makes episodes with: called with an episode's number, on which alone the result depends.

        Raises:
            FileExistsError: what is at ``out`` was not made by this command.
            ValueError: the settings cannot work.
        """

    def finish(self) -> None:  # noqa: B027  (few collections have something to do here)
        """Whatever must see all episodes; runs before they are merged, and again if it is killed."""

    @property
    def file(self) -> Path:
        """The episode file; it appears last of all."""
        return self.out

    @property
    def parts(self) -> Path:
        """Folder of what is not finished."""
        return self.out.with_name(self.out.name + ".parts")

    @property
    def shards(self) -> range:
        """Numbers of the parts."""
        return range(-(-self.size // self.SHARD))

    def shard_path(self, shard: int) -> Path:
        """File of a part."""
        return self.parts / f"{shard:05d}.h5"

    def shard_episodes(self, shard: int) -> range:
        """Episodes of a part."""
        return range(shard * self.SHARD, min((shard + 1) * self.SHARD, self.size))


def versions(packages: Iterable[str]) -> str:
    """The installed versions of packages, for a recipe."""
    return json.dumps({name: package_version(name) for name in packages})


def collect(collection: Collection) -> None:
    """Make a collection, unless it is there.

    Raises:
        FileExistsError: ``out`` or its parts were made otherwise.
        FileNotFoundError: something that the settings name is not there.
        ValueError: the settings cannot work, or ``out`` or a part is no episode file.
        ChildProcessError: a worker was killed.
    """
    recipe, began = collection.recipe(), time.monotonic()
    if collection.file.is_dir():
        raise FileExistsError(f"{collection.file} is a folder and stays as it is; choose another out=")
    if collection.file.exists():
        # A finished file stays what it is when packages are updated; parts of one file must not differ in that.
        _check_recipe(collection.file, EpisodeFile(collection.file).attrs, recipe, str(collection.out), {"versions"})
        shutil.rmtree(collection.parts, ignore_errors=True)
        print(f"{collection.out} is complete already: {summary(collection)}")
        return
    collection.maker()  # fails here, rather than in every worker
    collect_shards(collection, recipe)
    collection.finish()
    write_episodes(collection.file, merged(collection), recipe)
    shutil.rmtree(collection.parts)
    print(f"{collection.out}: {summary(collection)}, {time.monotonic() - began:.0f} s")


def _check_recipe(
    path: Path,
    found: Mapping[str, Any],
    recipe: Mapping[str, Any],
    remove: str,
    ignored: AbstractSet[str] = frozenset(),
) -> None:
    found = as_json(dict(found))
    keys = sorted({*recipe, *found} - ignored)
    changed = [f"{key}: {found.get(key)}, not {recipe.get(key)}" for key in keys if found.get(key) != recipe.get(key)]
    if changed:
        raise FileExistsError(
            f"{path} was made otherwise ({'; '.join(changed)}) and stays as it is; "
            f"choose another out= or remove {remove}"
        )


def collect_shards(collection: Collection, recipe: Mapping[str, Any]) -> None:
    """Make those parts that are not there yet, on all workers, with a progress bar."""
    note = collection.parts / "recipe.json"
    if note.exists():
        begun = f"{collection.parts} and {collection.out}" if collection.out.exists() else str(collection.parts)
        found = read_json(note)
        _check_recipe(collection.parts, found if isinstance(found, Mapping) else {}, recipe, begun)
    else:
        write_json(note, recipe)
    missing = [shard for shard in collection.shards if not _is_whole(collection.shard_path(shard))]
    if not missing:
        return
    done = collection.size - sum(len(collection.shard_episodes(shard)) for shard in missing)
    workers = min(collection.workers or _cores(), len(missing))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        with _bar(collection, "collecting", done) as bar:
            for future in as_completed(pool.submit(_collect_shard, collection, shard) for shard in missing):
                bar.update(future.result())
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker was killed, perhaps for lack of memory; the same command continues"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _is_whole(part: Path) -> bool:
    try:
        EpisodeFile(part)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _bar(collection: Collection, task: str, done: int = 0) -> tqdm:
    return tqdm(total=collection.size, initial=done, unit=collection.UNIT, desc=task, mininterval=0.5)


def merged(collection: Collection) -> Iterator[Episode]:
    """The episodes of all parts in order, one at a time."""
    with _bar(collection, "merging") as bar:
        for shard in collection.shards:
            part = EpisodeFile(collection.shard_path(shard))
            for episode in range(len(part)):
                yield {name: part.read(name, episode) for name in collection.columns}
                bar.update()


def summary(collection: Collection) -> str:
    """What an episode file holds: its episodes per split, frames and size."""
    data = EpisodeFile(collection.file)
    splits = ", ".join(f"{len(data.episodes(split))} {split}" for split in SPLITS)
    megabytes = collection.file.stat().st_size / 1e6
    return f"{len(data)} {collection.UNIT}s ({splits}), {data.lengths.sum()} frames, {megabytes:.0f} MB"


def _cores() -> int:
    # Only some systems tell which cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    # An interrupt is for the main process, which lets workers finish their parts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # Without this, workers of a killed run would live on and write into the next one's parts.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _maker(collection: Collection) -> Callable[[int], Episode]:
    return collection.maker()


def _collect_shard(collection: Collection, shard: int) -> int:
    episodes = collection.shard_episodes(shard)
    write_episodes(collection.shard_path(shard), map(_maker(collection), episodes))
    return len(episodes)
