"""Files are written whole or not at all."""

from __future__ import annotations

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


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    writing = atomic(path)
    half = writing.__enter__()
    half.write_text("half")
    with atomic(path) as temporary:
        assert temporary == half
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
