"""The run that a cell is compared with: the newest that accepted it, on this machine and text."""

from __future__ import annotations

import pytest

from nights import night, put
from qsae_bench.results.accepted import AcceptedRuns
from qsae_bench.results.accepted_record import AcceptedRecord, WorseRecord
from qsae_bench.results.setup import setup_of

WORSE = AcceptedRecord(
    run="before",
    worse=[WorseRecord(metric="fvu", layer=3, accepted=1, now=2, low=None, high=None, p=0.001)],
)


def with_cell(document, **changes):
    """The night with other fields of its nf4 cell."""
    reference, cell = document.cells
    return document.model_copy(update={"cells": [reference, cell.model_copy(update=changes)]})


def stored(folder, document, rows=("tiny-nf4",)):
    place = put(folder, document)
    (place / "rows").mkdir()
    for cell in rows:
        (place / "rows" / f"{cell}.parquet").touch()
    return document.run_id


def last(folder, tonight=None, trusted=()):
    document = tonight or night(28)
    return AcceptedRuns(folder).last("tiny", "nf4", setup_of(document, document.cells[1], None), trusted)


def found(folder, *args, **more):
    cell = last(folder, *args, **more).cell
    return cell and cell.run.document.run_id


def test_the_newest_counts(tmp_path):
    stored(tmp_path, night(1))
    newest = stored(tmp_path, night(3))
    stored(tmp_path, night(2))
    assert found(tmp_path) == newest
    assert last(tmp_path).cell.rows.name == "tiny-nf4.parquet"


@pytest.mark.parametrize(
    "later",
    [
        night(2, status="fail"),
        night(2, status="inconclusive"),
        night(2, reference_reason="not sane"),
        night(2, gpu="NVIDIA H100"),
        night(2, protocol="study"),
        night(2, synthetic=True),
        night(2, metrics_version=1_000_000),
        with_cell(night(2), verdicts=[]),
        with_cell(night(2), reason="non-finite values"),
        with_cell(night(2), status="crashed"),
        with_cell(night(2), accepted=WORSE),
        with_cell(night(2), hardware="another GPU of a mixed cluster"),
    ],
)
def test_what_was_not_accepted_here_is_passed_over(tmp_path, later):
    accepted = stored(tmp_path, night(1))
    stored(tmp_path, later)
    assert found(tmp_path) == accepted


def test_what_is_no_whole_run_is_passed_over(tmp_path):
    accepted = stored(tmp_path, night(1))
    stored(tmp_path, night(2), rows=["tiny-reference"])  # its rows are gone
    stored(tmp_path, night(3))
    (tmp_path / night(3).run_id / "started.json").touch()  # this run itself, resumed after its end
    stored(tmp_path, night(4))
    (tmp_path / night(4).run_id / "run.json").write_text("{")
    (tmp_path / ".part-half").mkdir()
    (tmp_path / "a file").touch()
    assert found(tmp_path) == accepted


def test_a_worse_run_is_accepted_once_thresholds_are_made_from_it(tmp_path):
    stored(tmp_path, night(1))
    worse = stored(tmp_path, with_cell(night(2, status="fail"), accepted=WORSE))
    assert found(tmp_path, trusted=[worse]) == worse
    invalid = stored(tmp_path, with_cell(night(3), reason="non-finite values"))
    assert found(tmp_path, trusted=[worse, invalid]) == worse


def test_a_run_that_could_not_compare_is_accepted(tmp_path):
    document = with_cell(night(2), accepted=AcceptedRecord(not_compared="none before"))
    assert found(tmp_path / "runs") is None
    assert found(tmp_path) is None
    assert found(tmp_path, document) is None
    assert stored(tmp_path, document) == found(tmp_path)


def test_another_text_is_said(tmp_path):
    other = stored(tmp_path, night(1))
    (why,) = [last(tmp_path, night(2, fingerprint="cd" * 16)).why_not]
    assert why.endswith(f"on this corpus; run {other} has another one")
    assert f"no accepted run of tiny-nf4 on NVIDIA H200 in {tmp_path}" in why
    assert len(why.splitlines()) == 1
