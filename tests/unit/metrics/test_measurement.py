"""Rows of a measurement: joining, cutting, and what makes them unusable."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import measurement, one_line, synthetic
from qsae_bench.errors import QsaeError
from qsae_bench.metrics.measurement import Measurement, Rows, first_sequences, merge, reference_side

LAYER = 3


def taken(whole: Measurement, index: slice) -> Measurement:
    return dataclasses.replace(
        whole,
        rows=whole.rows.take(index),
        layers={layer: rows.take(index) for layer, rows in whole.layers.items()},
    )


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 23), unique=True).map(sorted))
def test_splitting_and_merging_changes_no_metric(seed, cuts):
    whole = measurement(synthetic(seed, n=24), (LAYER,))
    edges = [0, *cuts, 24]
    shards = [taken(whole, slice(a, b)) for a, b in itertools.pairwise(edges)]
    merged = merge(shards)
    for key, column in whole.rows.scalars.items():
        np.testing.assert_array_equal(merged.rows.scalars[key], column)
    for key, column in whole.layers[LAYER].vectors.items():
        np.testing.assert_array_equal(merged.layers[LAYER].vectors[key], column)
    for key, column in whole.rows.vectors.items():
        np.testing.assert_array_equal(merged.rows.vectors[key], column)
    for key, column in whole.layers[LAYER].scalars.items():
        np.testing.assert_array_equal(merged.layers[LAYER].scalars[key], column)


def test_documents_stay_with_their_sequences():
    documents = np.array([0, 0, 1, 2, 2, 5])
    whole = measurement(synthetic(n=6), (LAYER,))
    whole = dataclasses.replace(
        whole,
        rows=dataclasses.replace(whole.rows, documents=documents),
        layers={LAYER: dataclasses.replace(whole.layers[LAYER], documents=documents)},
    )
    merged = merge([taken(whole, slice(0, 1)), taken(whole, slice(1, 6))])
    for one in (merged.rows, merged.layers[LAYER], reference_side(whole).rows):
        np.testing.assert_array_equal(one.documents, documents)
    np.testing.assert_array_equal(first_sequences(whole, 4).layers[LAYER].documents, documents[:4])


def test_rows_merged_with_rows_of_unknown_documents_have_unknown_ones():
    old = measurement(synthetic(n=6))
    new = dataclasses.replace(old, rows=dataclasses.replace(old.rows, documents=np.arange(6)))
    assert merge([old, new]).rows.documents is None


@pytest.mark.parametrize("field", ["model", "quantization"])
def test_shards_of_different_cells_do_not_merge(field):
    one = measurement(synthetic(n=8))
    with pytest.raises(QsaeError, match="can't merge") as caught:
        merge([one, dataclasses.replace(one, **{field: "other"})])
    assert "other" in one_line(caught.value)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 24))
def test_a_prefix_is_what_was_measured_so_far(seed, sequences):
    whole = measurement(synthetic(seed, n=24), (LAYER,))
    part = first_sequences(whole, sequences)
    assert len(part.rows) == len(part.layers[LAYER]) == sequences
    for key, column in whole.rows.scalars.items():
        np.testing.assert_array_equal(part.rows.scalars[key], column[:sequences])


def test_one_bad_row_makes_a_measurement_not_finite():
    whole = measurement(synthetic(), (LAYER,))
    assert whole.is_finite
    for key in ("nll_q", "nonfinite"):
        scalars = {k: c.copy() for k, c in whole.rows.scalars.items()}
        scalars[key][5] = np.nan if key == "nll_q" else 1.0
        assert not dataclasses.replace(whole, rows=Rows(scalars, whole.rows.vectors)).is_finite
    vectors = {k: c.copy() for k, c in whole.layers[LAYER].vectors.items()}
    vectors["sum_q"][7, 2] = np.inf
    layers = {LAYER: Rows(whole.layers[LAYER].scalars, vectors)}
    assert not dataclasses.replace(whole, layers=layers).is_finite


@pytest.mark.parametrize(
    ("columns", "broken"), [(("error_bos_q",), [LAYER]), (("error_bos_q", "energy_bos_q"), [])]
)
def test_nan_of_the_sae_and_of_the_model(columns, broken):
    """A reconstruction that is not finite is the SAE's where the residual stream is."""
    whole = measurement(synthetic(), (LAYER,))
    assert whole.broken_saes == []
    scalars = {k: c.copy() for k, c in whole.layers[LAYER].scalars.items()}
    for key in columns:
        assert key in scalars
        scalars[key][3] = np.nan
    layers = {LAYER: Rows(scalars, whole.layers[LAYER].vectors)}
    assert dataclasses.replace(whole, layers=layers).broken_saes == broken


def test_nothing_and_other_layers_do_not_merge():
    with pytest.raises(QsaeError, match="nothing to merge"):
        merge([])
    with pytest.raises(QsaeError, match="can't merge layers"):
        merge([measurement(synthetic(), (3,)), measurement(synthetic(), (3, 4))])


def test_costs_are_added_and_replaced():
    one = measurement(synthetic()).with_costs({"load_seconds": 1.0, "weight_bytes": 2.0})
    assert one.with_costs({"load_seconds": 3.0}).costs == {"load_seconds": 3.0, "weight_bytes": 2.0}


def test_the_references_side_has_its_columns_in_place_of_the_cells():
    whole = measurement(synthetic(), (LAYER,))
    found = reference_side(whole)
    np.testing.assert_array_equal(found.rows.scalars["nll_q"], whole.rows.scalars["nll_r"])
    np.testing.assert_array_equal(
        found.layers[LAYER].vectors["sum_q"], whole.layers[LAYER].vectors["sum_r"]
    )
    error = whole.layers[LAYER].scalars["error_r"]
    np.testing.assert_array_equal(found.layers[LAYER].scalars["cross_error"], error)
    np.testing.assert_array_equal(found.rows.scalars["kl"], whole.rows.scalars["kl"])
    assert not found.features
