"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envs.files import atomic


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_write_into_each_others_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    with atomic(path) as first, first.open("w") as file:
        file.write("first, ")
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with atomic(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        file.write("whole")
    assert path.read_text() == "first, whole"
    assert list(path.parent.iterdir()) == [path]
