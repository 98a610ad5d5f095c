"""Every command in README and docs is one that the configuration system takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from cjepa_agent import collect, convert, evaluate, extract, manifest, rollout, train
from configs.command import build, register

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS: dict[str, Any] = {
    "collect": collect.ENVIRONMENTS,
    "convert": convert.ConvertConfig,
    "evaluate": evaluate.EvaluateConfig,
    "extract": extract.ExtractConfig,
    "manifest": manifest.ManifestConfig,
    "rollout": rollout.RolloutConfig,
    "train": train.TrainConfig,
}


def commands(page: str) -> list[str]:
    """What follows ``python -m cjepa_agent.`` in a page's code blocks and code spans."""
    text = (ROOT / page).read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [*blocks.splitlines(), *(" ".join(span.split()) for span in spans)]
    return [line.partition(MODULE)[2] for line in lines if MODULE in line]


MODULE = "python -m cjepa_agent."
PAGES = ("README.md", "docs/clevrer.md", "docs/training.md", "docs/reproduce.md")
DOCUMENTED = [(page, line) for page in PAGES for line in commands(page)]


def test_there_are_commands() -> None:
    assert {line.split()[0] for _, line in DOCUMENTED} == set(SCHEMAS)
    assert sum(page == "docs/reproduce.md" for page, _ in DOCUMENTED) > 12


@pytest.mark.parametrize(("page", "line"), DOCUMENTED, ids=[line[:60] for _, line in DOCUMENTED])
def test_composes(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(line.replace("$RUNS", "runs"), comments=True)
    if name == "convert":
        arguments = convert.with_keys(arguments)
    # Each command knows its own groups alone: what is a group of one is a plain key of another.
    store = ConfigStore.instance()
    own = {key: node for key, node in store.repo.items() if key.startswith(("hydra", "_dummy"))}
    monkeypatch.setattr(store, "repo", own)
    register(name, SCHEMAS[name])
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config = compose(config_name=f"{name}_command", overrides=arguments)
    build(SCHEMAS[name], config)
