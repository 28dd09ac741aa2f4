"""Writing files that are complete or absent."""

import os
from pathlib import Path

import pytest

from mrr_model.files.atomic import replacing, write_file


def test_a_file_that_cannot_be_finished_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_file(file, "old")

    def write_half() -> None:
        with replacing(file) as unfinished:
            unfinished.write_text("ne", encoding="utf-8")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["old"]


def test_a_new_file_has_the_usual_mode_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    plain, new = tmp_path / "plain", tmp_path / "new"
    plain.write_bytes(b"")
    write_file(new, b"x")
    assert new.stat().st_mode == plain.stat().st_mode
    os.chmod(new, 0o600)  # noqa: PTH101  # as a user would
    write_file(new, b"y")
    assert new.stat().st_mode & 0o777 == 0o600
    assert new.read_bytes() == b"y"
