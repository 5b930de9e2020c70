"""Columns of the residual stream against numpy, and the study's reading of their ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import cosines
from qsae_bench.metrics import residual
from qsae_bench.metrics.residual import read_resolution
from qsae_bench.metrics.sinks import Positions


def test_columns_against_numpy():
    rng = np.random.default_rng(0)
    x_r, x_q, hat_r, hat_q = rng.normal(size=(4, 3, 10, 6))
    valid, ordinary = rng.random((3, 10)) < 0.8, rng.random((3, 10)) < 0.7
    ordinary &= valid
    kinds = Positions(*map(torch.from_numpy, (valid, ordinary, valid & ~ordinary, valid, valid)))
    found = residual.columns(*map(torch.from_numpy, (x_r, x_q, hat_r, hat_q)), kinds)
    expected = {
        "moved": ((x_q - x_r) ** 2).sum(-1),
        "moved_norm": np.linalg.norm(x_q - x_r, axis=-1),
        "cosine": cosines(x_q, x_r),
        "cross_error": ((x_r - hat_q) ** 2).sum(-1),
        "decoded_moved": ((hat_q - hat_r) ** 2).sum(-1),
    }
    of_all = {f"{key}_all": expected[key] for key in ("moved", "cross_error")}
    assert found.keys() == expected.keys() | of_all.keys()
    for mask, group in ((ordinary, expected), (valid, of_all)):
        for key, values in group.items():
            np.testing.assert_allclose(found[key], (values * mask).sum(1), err_msg=key)


def test_what_did_not_move_has_a_cosine_of_exactly_one():
    x = torch.randn(2, 50, 7)
    x[0, 0] = 0
    found = residual.columns(
        x, x.clone(), x, x, Positions.without_sinks(torch.ones(2, 50, dtype=torch.bool))
    )
    assert found["cosine"].tolist() == [50, 50] and found["moved"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.0, 3.0], "informative"), ([0.99, 3.0], "with care"), ([0.05, 0.0999], "uninformative"),
        ([0.05, 0.1], "with care"), ([0.5], "with care"),
    ],
)  # fmt: skip
def test_the_studys_three_way_reading(ratios, word):
    assert read_resolution(ratios) == word
