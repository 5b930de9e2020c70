"""Sums by document, against plain Python."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import measurement, synthetic
from qsae_bench.metrics.measurement import Rows
from qsae_bench.stats.documents import by_document, document_count, document_of

LAYER = 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=2, max_size=12))
def test_a_documents_row_is_the_sum_of_its_sequences(seed, documents):
    rows = measurement(synthetic(seed, n=len(documents)), (LAYER,)).layers[LAYER]
    rows = dataclasses.replace(rows, documents=np.array(documents))
    found = by_document(rows)
    numbers = sorted(set(documents))
    assert found.documents.tolist() == numbers
    assert len(found) == document_count(rows) == len(numbers)
    assert [numbers[place] for place in document_of(rows)] == documents
    for name, column in rows.scalars.items():
        for place, number in enumerate(numbers):
            own = [column[i] for i, at in enumerate(documents) if at == number]
            assert math.isclose(found.scalars[name][place], math.fsum(own), rel_tol=1e-13)
    for name, column in rows.vectors.items():
        for place, number in enumerate(numbers):
            own = sum(column[i] for i, at in enumerate(documents) if at == number)
            np.testing.assert_allclose(found.vectors[name][place], own, rtol=1e-12)


def test_sums_are_in_float64_whatever_the_columns_are():
    column = np.full(2000, 0.1, dtype=np.float32)
    found = by_document(
        Rows({"x": column, "n": np.ones(2000, dtype=np.int64)}, documents=np.zeros(2000, int))
    )
    assert found.scalars["x"].dtype == found.scalars["n"].dtype == np.float64
    assert found.scalars["x"].item() == math.fsum(column.tolist())


def test_without_two_sequences_of_one_document_nothing_changes():
    rows = measurement(synthetic(n=6), (LAYER,)).layers[LAYER]
    for documents in (None, np.array([0, 1, 3, 4, 8, 9])):
        found = by_document(dataclasses.replace(rows, documents=documents))
        np.testing.assert_equal(found.documents, documents)
        for name, column in (rows.scalars | rows.vectors).items():
            np.testing.assert_array_equal((found.scalars | found.vectors)[name], column)


def test_a_vector_by_position_has_no_sum():
    rows = dataclasses.replace(measurement(synthetic(n=4)).rows, documents=np.array([0, 0, 1, 1]))
    assert rows.vectors
    assert not by_document(rows).vectors
