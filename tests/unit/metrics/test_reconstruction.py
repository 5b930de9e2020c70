"""FVU by each definition, from the columns of a batch, against numpy on whole activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qsae_bench.metrics import METRICS, reconstruction
from qsae_bench.metrics.measurement import Rows
from qsae_bench.metrics.sinks import Positions
from qsae_bench.stats.bootstrap import column_sums


@pytest.fixture(scope="module")
def activations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 12, 6)) + 3 * rng.normal(size=6)
    x[:, 0] *= 100
    valid = np.ones((5, 12), dtype=bool)
    valid[:, 0] = False
    sinks = valid & (rng.random((5, 12)) < 0.1)
    x[sinks] *= 30
    return x, x + 0.3 * rng.normal(size=x.shape), rng.integers(0, 9, (5, 12)).astype(float), valid, sinks


def positions_of(valid, sinks):
    none = torch.zeros_like(valid)
    return Positions(valid, valid & ~sinks, sinks, none, none)


def column_sums_of(tensors, positions):
    found = reconstruction.side_columns("q", *tensors, positions) | positions.columns()
    arrays = {key: column.numpy() for key, column in found.items()}
    for side in ("r", "q"):  # both sides alike: only the cell's formulas are looked at
        arrays |= {f"{key[:-1]}{side}": column for key, column in arrays.items() if key.endswith("_q")}
    vectors = {key: arrays.pop(key) for key in list(arrays) if key.startswith("sum_")}
    d_model = float(tensors[0].shape[-1])
    return column_sums(Rows(arrays, vectors), np.ones((1, len(tensors[0])))) | {"d_model": d_model}


@pytest.fixture(scope="module")
def sums(activations):
    *tensors, valid, sinks = (torch.from_numpy(one) for one in activations)
    return column_sums_of(tensors, positions_of(valid, sinks))


def unexplained(x, x_hat, centre):
    return ((x - x_hat) ** 2).sum() / ((x - centre) ** 2).sum()


def test_each_definition_of_fvu(activations, sums):
    x, x_hat, active, valid, sinks = activations
    calm = valid & ~sinks
    seen, ordinary = (x[valid], x_hat[valid]), (x[calm], x_hat[calm])
    expected = {
        "fvu": unexplained(*ordinary, ordinary[0].mean(0)),
        "fvu_all": unexplained(*seen, seen[0].mean(0)),
        "fvu_scalar": unexplained(*seen, seen[0].mean()),
        "fvu_scalar_bos": unexplained(x, x_hat, x.mean()),
        "mse": ((ordinary[0] - ordinary[1]) ** 2).mean(),
        "l0": active[calm].mean(),
        "l2_ratio": np.linalg.norm(ordinary[1], axis=1).sum() / np.linalg.norm(ordinary[0], axis=1).sum(),
    }
    found = {key: METRICS[key].formula(sums).item() for key in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert expected["fvu_scalar"] < expected["fvu"], "one mean for all dimensions hides error"


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e5])
def test_a_large_mean_leaves_the_variance_right(mean):
    """A channel far from 0, as real models have, in float32; one sequence has no ordinary position."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 50, 8))
    x[..., 2] += mean
    x = torch.from_numpy(x).float()
    x_hat = x + 0.3 * torch.from_numpy(rng.normal(size=x.shape)).float()
    valid = torch.from_numpy(rng.random((4, 50)) < 0.9)
    valid[3] = False
    found = column_sums_of([x, x_hat, x[..., 0]], Positions.without_sinks(valid))
    exact, error = x[valid].double().numpy(), (x - x_hat)[valid].double().numpy()
    expected = (error**2).sum() / ((exact - exact.mean(0)) ** 2).sum()
    for key in ("fvu", "fvu_all"):
        assert METRICS[key].formula(found).item() == pytest.approx(expected, rel=1e-5), key


def test_what_does_not_vary_has_no_fvu():
    x = torch.full((2, 5, 3), 7.0)
    found = column_sums_of(
        [x, x + 1, x[..., 0]], Positions.without_sinks(torch.ones(2, 5, dtype=torch.bool))
    )
    assert np.isnan(METRICS["fvu"].formula(found)).all()
