"""What all tests share."""

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # before pygame is first imported


@pytest.fixture
def installation() -> None:
    """Skip where the distribution is not installed, and fresh interpreters hence cannot find the environments."""
    try:
        metadata.distribution("cjepa-agent")
    except metadata.PackageNotFoundError:
        pytest.skip("cjepa-agent is not installed: pip install -e .")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Products as small as in tests take a fraction of the time that a second thread takes to join in."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def slots(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slots of the true states in the module's CLEVRER data set."""
    from cjepa_agent.extract import ExtractConfig, extract

    folder = tmp_path_factory.mktemp("slots") / "slots"
    extract(ExtractConfig(data=data, encoder=Path("state"), out=folder))
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow`` runs the tests marked ``slow``, too."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked ``slow`` unless asked for, and those marked ``gpu`` where there is no CUDA device."""
    if not config.getoption("--slow"):
        _skip(items, "slow", "takes long; run with --slow")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))
