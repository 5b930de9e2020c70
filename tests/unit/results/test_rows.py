"""Stored rows read back bit for bit."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import measurement, one_line, synthetic
from qsae_bench.errors import QsaeError
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.results.rows import read_rows, write_rows

MEASURED = measurement(synthetic(n=6), layers=(1, 3), costs={"load_seconds": 0.1 + 0.2})


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
    check_round_trip(MEASURED)


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


def test_rows_that_are_missing_or_foreign_or_torn_take_one_line(tmp_path):
    foreign, torn, text = tmp_path / "foreign.parquet", tmp_path / "torn.parquet", tmp_path / "text.parquet"
    pa.parquet.write_table(pa.table({"x": [1.0]}), foreign)
    write_rows(torn, MEASURED)
    torn.write_bytes(torn.read_bytes()[:-100])
    text.write_text("hello")
    for path in (tmp_path / "none.parquet", foreign, torn, text):
        with pytest.raises(QsaeError) as caught:
            read_rows(path)
        assert str(path) in one_line(caught.value)


@pytest.mark.parametrize("documents", [np.array([0, 0, 1, 3, 3, 7]), None])
def test_documents_read_back_for_the_cell_and_every_layer(documents):
    layers = {k: dataclasses.replace(rows, documents=documents) for k, rows in MEASURED.layers.items()}
    rows = dataclasses.replace(MEASURED.rows, documents=documents)
    found = round_trip(dataclasses.replace(MEASURED, rows=rows, layers=layers))
    for one in (found.rows, *found.layers.values()):
        np.testing.assert_equal(one.documents, documents)
        assert "document" not in one.scalars


def test_row_order_is_kept():
    scalars = {"nll_q": np.array([3.0, 1.0, 2.0])}
    found = round_trip(dataclasses.replace(MEASURED, rows=Rows(scalars), layers={}))
    assert found.rows.scalars["nll_q"].tolist() == [3.0, 1.0, 2.0]
