"""What all tests share."""

import os
from importlib import metadata

import pytest

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # before pygame is first imported


@pytest.fixture
def installation() -> None:
    """Skip where the distribution is not installed, and fresh interpreters hence cannot find the environments."""
    try:
        metadata.distribution("cjepa-agent")
    except metadata.PackageNotFoundError:
        pytest.skip("cjepa-agent is not installed: pip install -e .")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
