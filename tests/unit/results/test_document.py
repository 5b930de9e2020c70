"""The run document and the rows beside it: strict, exact, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import measurement, one_line, synthetic, threshold
from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import decide
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.results import document as results
from qsae_bench.results.document import (
    RunDocument,
    new_run_id,
    read_run,
    value_record,
    verdict_record,
    write_run,
)
from qsae_bench.results.rows import read_rows, write_rows
from qsae_bench.stats.bootstrap import Estimate

MEASURED = {"tiny-nf4": measurement(synthetic(n=6), layers=(1, 3), costs={"load_seconds": 0.1 + 0.2})}


def document(**changes) -> RunDocument:
    verdict = decide("perplexity_increase_pct", Estimate(1.25, 0.75, 1.75), threshold(1.0), 1000)
    cell = {
        "model": "tiny",
        "quantization": "nf4",
        "status": "measured",
        "metrics": {"perplexity": value_record(Estimate(9.5, 9.0, math.nan)).model_dump()},
        "layers": {"3": {"metrics": {"fvu": {"value": 0.1 + 0.2, "low": 1e-300, "high": 1e300}}}},
        "verdicts": [verdict_record(verdict).model_dump()],
    }
    fields = {
        "schema_version": 1,
        "run_id": "20260101T000000Z-abcd",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "command": "pytest benchmarks -k 'größer ≤ \u2028'",
        "environment": {"torch": "2.11", "gpus": [], "driver": None},
        "corpus": {
            "tiny": {
                "name": "tiny", "fingerprint": "ab", "sequences": 6, "sequence_length": 12, "tokens": 60,
                "batch_size": 2, "dropped_documents": 0, "dropped_tokens": 3,
            }
        },
        "cells": [cell, {"model": "m", "quantization": "q", "status": "skipped", "reason": "needs a GPU"}],
    }  # fmt: skip
    return RunDocument.model_validate(fields | changes)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


# -- the document ---------------------------------------------------------------------------------


def test_what_is_written_reads_back_the_same(tmp_path):
    folder = write_run(tmp_path, document(), MEASURED)
    assert folder == tmp_path / "runs" / document().run_id
    assert read_run(folder) == document()


def test_the_file_is_strict_json_with_null_for_nan(tmp_path):
    folder = write_run(tmp_path, document(), {})
    text = (folder / "run.json").read_text(encoding="utf-8")
    plain = json.loads(text, parse_constant=refuse_constant)
    metric = plain["cells"][0]["metrics"]["perplexity"]
    assert metric == {"value": 9.5, "low": 9.0, "high": None}
    assert plain["cells"][0]["layers"]["3"]["metrics"]["fvu"]["value"] == 0.1 + 0.2
    assert plain["command"] == document().command


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_null(bad):
    record = value_record(Estimate(bad, bad, 1.0))
    assert (record.value, record.low, record.high) == (None, None, 1.0)


def test_a_verdict_keeps_its_threshold_and_its_source():
    verdict = decide("fvu", Estimate(2.0, 1.5, 2.5), threshold(1.0, "min", "fvu"), 123, layer=3)
    record = verdict_record(verdict)
    assert (record.metric, record.layer, record.status) == ("fvu", 3, "pass")
    assert (record.side, record.bound, record.tokens) == ("min", 1.0, 123)
    assert record.source == "measured 1.2 with margin 0.3"


def test_an_unset_verdict_has_no_threshold():
    record = verdict_record(decide("fvu", Estimate(2.0), None, 123, layer=3))
    assert (record.status, record.side, record.bound, record.source) == ("unset", None, None, None)


def test_run_ids_differ_and_sort_by_time():
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) > 45
    assert [name[:16] for name in ids] == sorted(name[:16] for name in ids)


def test_latest_moves_to_the_newest_run(tmp_path):
    for run_id in ("first", "second"):
        write_run(tmp_path, document(run_id=run_id), MEASURED)
        assert read_run(tmp_path / "latest").run_id == run_id
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["first", "second"]


def test_latest_survives_moving_the_whole_folder(tmp_path):
    write_run(tmp_path / "here", document(), {})
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_run(tmp_path / "there" / "latest") == document()


def leftovers(qsae_dir: Path) -> list[str]:
    return sorted(p.name for p in [*qsae_dir.iterdir(), *(qsae_dir / "runs").iterdir()])


FULL_DISK = OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_rows", "rename"])
def test_a_full_disk_half_way_leaves_the_old_run_and_nothing_else(tmp_path, monkeypatch, step):
    write_run(tmp_path, document(run_id="old"), MEASURED)
    before = leftovers(tmp_path)

    def full(*args):
        raise FULL_DISK

    if step == "write_rows":
        monkeypatch.setattr(results, "write_rows", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(QsaeError, match="No space left on device") as caught:
        write_run(tmp_path, document(run_id="new"), MEASURED)
    assert str(tmp_path) in one_line(caught.value) and "--qsae-dir" in str(caught.value)
    monkeypatch.undo()
    assert leftovers(tmp_path) == before
    assert read_run(tmp_path / "latest").run_id == "old"


def test_latest_that_is_in_the_way_leaves_no_litter(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(QsaeError) as caught:
        write_run(tmp_path, document(), {})
    one_line(caught.value)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_place_that_cant_be_written_takes_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QsaeError, match="can't be written") as caught:
        write_run(tmp_path / "file", document(), {})
    one_line(caught.value)


# -- reading what is not a run --------------------------------------------------------------------


def run_json(**changes) -> str:
    return json.dumps(document().model_dump() | changes)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"{", ["not JSON"]),
        (b"", ["not JSON"]),
        (b"\xff", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[1" + b"0" * 5000 + b"]", ["not JSON"]),
        (b"[]", ["not a run document"]),
        (b"{}", ["not a run document", "schema_version"]),
        (run_json(schema_version=2).encode(), ["not a run document", "schema_version"]),
        (run_json(extra=1).encode(), ["not a run document", "extra"]),
        (run_json(**{"two\nlines": 1}).encode(), ["not a run document", "two\\nlines"]),
        (run_json(cells=3).encode(), ["not a run document", "cells"]),
        (run_json(started=None).encode(), ["not a run document", "started"]),
        (run_json(cells=[{"model": "m"}]).encode(), ["not a run document", "cells.0.quantization"]),
        (
            run_json(cells=[{"model": "m", "quantization": "q", "status": "fine"}]).encode(),
            ["not a run document", "cells.0.status"],
        ),
        (
            run_json(
                cells=[
                    {
                        "model": "m", "quantization": "q", "status": "measured",
                        "metrics": {"fvu": {"value": math.nan}},
                    }
                ]
            ).encode(),
            ["not JSON: NaN is not a JSON value"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_run_document_takes_one_line(tmp_path, content, parts):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(QsaeError) as caught:
        read_run(tmp_path)
    message = one_line(caught.value)
    assert message.startswith(str(tmp_path / "run.json"))
    assert [part for part in parts if part not in message] == [], message


def test_no_run_there_takes_one_line(tmp_path):
    with pytest.raises(QsaeError, match="can't be read: No such file") as caught:
        read_run(tmp_path / "none")
    one_line(caught.value)


texts = st.text(max_size=8)  # lone surrogates too: JSON can spell them
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
FIELDS = st.sampled_from(sorted(RunDocument.model_fields))


@given(trees | st.dictionaries(FIELDS | texts, trees, max_size=3), st.booleans())
@example({"run_id": "\ud800"}, True)
@example({"\ud800": 1}, True)
@example({"corpus": {"\n": 1}}, True)
def test_any_json_reads_or_is_refused_in_one_line(anything, among_good_fields):
    if among_good_fields and isinstance(anything, dict):
        anything = document().model_dump() | anything
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text(json.dumps(anything), encoding="utf-8")
        try:
            found = read_run(Path(folder))
        except QsaeError as error:
            assert one_line(error).startswith(folder)
        else:
            assert set(anything) <= set(RunDocument.model_fields), "nothing unknown is ignored"
            assert found.schema_version == 1


@given(st.binary(max_size=30))
def test_any_bytes_are_refused_in_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_bytes(content)
        with pytest.raises(QsaeError) as caught:
            read_run(Path(folder))
        one_line(caught.value)


# -- rows -----------------------------------------------------------------------------------------


def bits(array: np.ndarray) -> tuple:
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def every_bit(found: Measurement) -> dict:
    parts = {("", key): rows for key, rows in (("cell", found.rows), *found.layers.items())}
    return {
        (place, kind, name): bits(column)
        for place, rows in parts.items()
        for kind, columns in (("scalar", rows.scalars), ("vector", rows.vectors))
        for name, column in columns.items()
    }


def round_trip(one: Measurement) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "cell.parquet", one)
        return read_rows(Path(folder) / "cell.parquet")


def check_round_trip(one: Measurement) -> None:
    found = round_trip(one)
    assert every_bit(found) == every_bit(one)
    for field in ("model", "quantization", "corpus_fingerprint", "d_model", "costs"):
        assert getattr(found, field) == getattr(one, field)
    assert list(found.layers) == list(one.layers)


def test_rows_read_back_bit_for_bit():
    check_round_trip(MEASURED["tiny-nf4"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(width=64), min_size=1, max_size=9),
    st.sampled_from([np.float64, np.float32, np.int64]),
    st.integers(1, 4),
)
@example([math.nan, -0.0, math.inf, 5e-324, -math.inf], np.float64, 1)
def test_any_column_reads_back_bit_for_bit(values, dtype, width):
    with np.errstate(all="ignore"):
        column = np.array(values).astype(dtype)
    every_other = np.repeat(column, 2)[::2]  # not contiguous
    vector = np.outer(np.ones(width), np.nan_to_num(column)).T
    rows = Rows({"a": column, "b": every_other}, {"sum_r": vector})
    check_round_trip(Measurement("m", "q", "f", 8, rows, {0: rows, 12: rows}))


def test_a_measurement_without_layers_reads_back():
    check_round_trip(Measurement("m", "q", "f", 8, Rows({"nll_q": np.arange(3.0)}), {}))


def test_a_runs_rows_can_be_read_back(tmp_path):
    folder = write_run(tmp_path, document(), MEASURED)
    assert every_bit(read_rows(folder / "rows" / "tiny-nf4.parquet")) == every_bit(MEASURED["tiny-nf4"])


def test_rows_that_are_missing_or_foreign_or_torn_take_one_line(tmp_path):
    foreign, torn, text = tmp_path / "foreign.parquet", tmp_path / "torn.parquet", tmp_path / "text.parquet"
    pa.parquet.write_table(pa.table({"x": [1.0]}), foreign)
    write_rows(torn, MEASURED["tiny-nf4"])
    torn.write_bytes(torn.read_bytes()[:-100])
    text.write_text("hello")
    for path in (tmp_path / "none.parquet", foreign, torn, text):
        with pytest.raises(QsaeError) as caught:
            read_rows(path)
        assert str(path) in one_line(caught.value)


def test_row_order_is_kept():
    scalars = {"nll_q": np.array([3.0, 1.0, 2.0])}
    found = round_trip(dataclasses.replace(MEASURED["tiny-nf4"], rows=Rows(scalars), layers={}))
    assert found.rows.scalars["nll_q"].tolist() == [3.0, 1.0, 2.0]
