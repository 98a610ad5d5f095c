"""Every command in README and docs is one that the configuration system takes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, run
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from benchmarks import causality, planners, planning, systems, training
from cjepa_agent import CJEPAAgent, collect, convert, evaluate, extract, manifest, rollout, train
from configs.command import build, help_text, register

SCHEMAS: dict[str, Any] = {
    "benchmarks.causality": causality.CausalityBenchmark,
    "benchmarks.planners": planners.PlannersBenchmark,
    "benchmarks.planning": planning.PlanningBenchmark,
    "benchmarks.systems": systems.SystemsBenchmark,
    "benchmarks.training": training.TrainingBenchmark,
    "cjepa_agent.collect": collect.ENVIRONMENTS,
    "cjepa_agent.convert": convert.ConvertConfig,
    "cjepa_agent.evaluate": evaluate.EvaluateConfig,
    "cjepa_agent.extract": extract.ExtractConfig,
    "cjepa_agent.manifest": manifest.ManifestConfig,
    "cjepa_agent.rollout": rollout.RolloutConfig,
    "cjepa_agent.train": train.TrainConfig,
}
WITHOUT_SETTINGS = {"benchmarks.clevrer", "benchmarks.pusht"}
MODULE = re.compile(r"python -m ((?:cjepa_agent|benchmarks)\.\w+.*)")


def commands(page: str) -> list[str]:
    """What follows ``python -m`` in a page's code blocks and code spans, of the modules of this project."""
    text = (ROOT / page).read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [*blocks.splitlines(), *(" ".join(span.split()) for span in spans)]
    return [found[1] for line in lines if (found := MODULE.search(line))]


PAGES = (
    "README.md",
    "docs/clevrer.md",
    "docs/masking.md",
    "docs/training.md",
    "docs/reproduce.md",
    "docs/extending.md",
    "docs/planning.md",
)
DOCUMENTED = [(page, line) for page in PAGES for line in commands(page)]


def test_there_are_commands() -> None:
    assert {line.split()[0] for _, line in DOCUMENTED} == set(SCHEMAS) | WITHOUT_SETTINGS
    assert sum(page == "docs/reproduce.md" for page, _ in DOCUMENTED) > 12


@pytest.mark.parametrize(("page", "line"), DOCUMENTED, ids=[line[:60] for _, line in DOCUMENTED])
def test_composes(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, *arguments = shlex.split(line.replace("$RUNS", "runs"), comments=True)
    name = module.rpartition(".")[2]
    if module in WITHOUT_SETTINGS:
        assert importlib.util.find_spec(module) and not arguments
        return
    if name == "convert":
        arguments = convert.with_keys(arguments)
    # Each command knows its own groups alone: what is a group of one is a plain key of another.
    store = ConfigStore.instance()
    own = {key: node for key, node in store.repo.items() if key.startswith(("hydra", "_dummy"))}
    monkeypatch.setattr(store, "repo", own)
    register(name, SCHEMAS[module])
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config = compose(config_name=f"{name}_command", overrides=arguments)
    build(SCHEMAS[module], config)


def test_own_episodes_from_the_page_to_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/extending.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(script, {})
    for line in commands("docs/extending.md"):
        module, *arguments = shlex.split(line)
        if module in ("cjepa_agent.train", "cjepa_agent.extract"):
            few = ["trainer.steps=2", "trainer.batch=2", "trainer.warmup=1"] if module == "cjepa_agent.train" else []
            run(module, *arguments, *few)
    agent = CJEPAAgent.from_pretrained("own_model/checkpoint")
    frame, proprio = np.zeros((64, 64, 3), np.uint8), np.zeros(1, np.float32)
    seen = {"pixels": frame, "proprio": proprio, "goal_pixels": frame, "goal_proprio": proprio}
    action, _ = agent.predict(seen)
    assert action.shape == (1,) and abs(action[0]) <= 1


def test_help_shows_what_is_taken_if_nothing_is_given() -> None:
    text = help_text("cjepa_agent.evaluate", evaluate.EvaluateConfig)
    assert "planner=default|fast|full  [fast if not given]" in text and "planner.method=icem" in text
    assert "objectives.strict.objects=block" in text and "objectives.strict.proprio_weight=0.0" in text
