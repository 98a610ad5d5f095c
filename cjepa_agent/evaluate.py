"""``python -m cjepa_agent.evaluate``: score an agent; without arguments, the bundled one on Push-T planning."""

from __future__ import annotations

from importlib import import_module

from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.tensors import require_device
from configs.command import command


def evaluate(config: EvaluateConfig) -> None:
    """Run the task and print its table."""
    require_device(config.device)
    task = import_module(f"cjepa_agent.evaluation.{config.task}")
    print(task.run(config))


main = command("evaluate", EvaluateConfig, evaluate)

if __name__ == "__main__":
    main()
