"""The journal: entries come back exactly, and a damaged one is refused in one line."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.results import journal
from qsae_bench.results.journal import ReferenceState
from qsae_bench.stats.bootstrap import Estimate, Estimates, estimate
from small_run import ROWS, entry

numbers = st.floats() | st.none()
estimates = st.dictionaries(
    st.sampled_from(["fvu", "l0", "x"]), st.builds(Estimate, st.floats(), numbers, numbers), min_size=1
)


@given(estimates, st.dictionaries(st.integers(0, 40), estimates, max_size=3))
def test_estimates_come_back_to_the_last_bit(cell, layers):
    one = Estimates(cell, layers)
    back = journal.unpack_estimates(json.loads(json.dumps(journal.pack_estimates(one), allow_nan=False)))
    # repr: NaN is not equal to itself, and −0.0 equals 0.0
    assert repr(back) == repr(one)


def test_a_reference_comes_back_as_it_was(tmp_path):
    rows = ROWS["tiny-reference"]
    whole = estimate(rows)
    measured = CellResult(
        rows, whole, (127, 254), 508, exhausted=True, noise_floor=whole, invalid_reason="why"
    )
    kept = journal.write(tmp_path, entry("tiny-reference", reference=ReferenceState.of(measured)), rows)
    back = journal.read(tmp_path, "tiny-reference")
    assert back == kept
    again = back.entry.reference.cell_result(back.measurement())
    assert repr(again.estimates) == repr(measured.estimates) == repr(again.noise_floor)
    assert (again.looks, again.planned_tokens, again.exhausted, again.invalid_reason) == (
        (127, 254),
        508,
        True,
        "why",
    )
    assert again.is_last_look
    assert again.critical == measured.critical
    assert repr(estimate(again.measurement)) == repr(whole)


@settings(max_examples=50)
@given(st.text(), st.binary(max_size=20))
def test_any_output_of_a_test_can_be_kept(tmp_path_factory, text, output):
    folder = tmp_path_factory.mktemp("run")
    said = {
        "sections": [("out", text), ("err", output.decode("utf-8", "surrogateescape"))],
        "duration": 0.1,
    }
    tests = {"t": [json.loads(json.dumps(said))]}
    journal.write(folder, entry("a-b", tests=tests), None)
    assert journal.read(folder, "a-b").entry.tests == tests


def test_a_number_that_is_not_finite_is_no_entry(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.write(tmp_path, entry("a-b", timings=[{"seconds": math.nan}]), None)
    assert journal.cell_ids(tmp_path) == []
    assert [path.name for path in (tmp_path / "journal").iterdir()] == []


def test_what_is_not_there_is_none(tmp_path):
    assert journal.read(tmp_path, "a-b") is None
    assert journal.cell_ids(tmp_path) == []


def test_an_entry_of_other_formulas_is_not_taken_over(tmp_path):
    """The cell is then measured again; an entry from before the field has version 1."""
    journal.write(tmp_path, entry("tiny-nf4"), ROWS["tiny-nf4"])
    path = tmp_path / "journal" / "tiny-nf4.json"
    found = json.loads(path.read_bytes())
    assert found["metrics_version"] == METRICS_VERSION
    path.write_text(json.dumps(found | {"metrics_version": METRICS_VERSION + 1}))
    with pytest.raises(QsaeError) as caught:
        journal.read(tmp_path, "tiny-nf4")
    assert f"metrics version {METRICS_VERSION + 1}, of a newer qsae-bench" in one_line(caught.value)
    del found["metrics_version"]
    path.write_text(json.dumps(found))
    with pytest.raises(QsaeError, match="metrics version 1, today's is"):
        journal.read(tmp_path, "tiny-nf4")


@pytest.mark.parametrize("damage", ["json", "rows", "features", "gone", "foreign", "deep"])
def test_a_damaged_entry_takes_one_line(tmp_path, damage):
    journal.write(tmp_path, entry("tiny-nf4"), ROWS["tiny-nf4"])
    path = tmp_path / "journal" / "tiny-nf4.json"
    rows = tmp_path / "rows" / "tiny-nf4.parquet"
    features = tmp_path / "rows" / "tiny-nf4.features.safetensors"
    if damage == "json":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "foreign":
        path.write_text('{"format": 2}')
    elif damage == "deep":
        path.write_bytes(b"[" * 100_000)
    elif damage == "gone":
        rows.unlink()
    else:
        which = rows if damage == "rows" else features
        content = bytearray(which.read_bytes())
        content[len(content) // 2] ^= 1
        which.write_bytes(bytes(content))
    with pytest.raises(QsaeError) as caught:
        journal.read(tmp_path, "tiny-nf4")
    assert str(tmp_path) in one_line(caught.value)
