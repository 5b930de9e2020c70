"""A whole run is written in one rename, and ``latest`` points at it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.results import run_files
from qsae_bench.results.document import read_run
from qsae_bench.results.run_files import write_run
from small_run import ROWS, check_rows, document

MEASURED = {"tiny-nf4": ROWS["tiny-nf4"]}


def test_what_is_written_reads_back_the_same(tmp_path):
    folder = write_run(tmp_path, document("one"), MEASURED)
    assert folder == tmp_path / "runs" / "one"
    assert read_run(folder) == document("one")
    check_rows(folder, "tiny-nf4")


def test_latest_moves_to_the_newest_run(tmp_path):
    for run_id in ("first", "second"):
        write_run(tmp_path, document(run_id), MEASURED)
        assert read_run(tmp_path / "latest").run_id == run_id
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["first", "second"]


def test_latest_survives_moving_the_whole_folder(tmp_path):
    write_run(tmp_path / "here", document("one"), {})
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_run(tmp_path / "there" / "latest") == document("one")


def leftovers(qsae_dir: Path) -> list[str]:
    return sorted(p.name for p in [*qsae_dir.iterdir(), *(qsae_dir / "runs").iterdir()])


FULL_DISK = OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_rows", "rename"])
def test_a_full_disk_half_way_leaves_the_old_run_and_nothing_else(tmp_path, monkeypatch, step):
    write_run(tmp_path, document("old"), MEASURED)
    before = leftovers(tmp_path)

    def full(*args):
        raise FULL_DISK

    if step == "write_rows":
        monkeypatch.setattr(run_files, "write_rows", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(QsaeError, match="No space left on device") as caught:
        write_run(tmp_path, document("new"), MEASURED)
    assert str(tmp_path) in one_line(caught.value) and "--qsae-dir" in str(caught.value)
    monkeypatch.undo()
    assert leftovers(tmp_path) == before
    assert read_run(tmp_path / "latest").run_id == "old"


def test_latest_that_is_in_the_way_leaves_no_litter(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(QsaeError) as caught:
        write_run(tmp_path, document("one"), {})
    one_line(caught.value)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_place_that_cant_be_written_takes_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QsaeError, match="can't be written") as caught:
        write_run(tmp_path / "file", document("one"), {})
    one_line(caught.value)
