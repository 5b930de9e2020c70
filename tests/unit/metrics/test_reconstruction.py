"""FVU by each definition, from the columns of a batch, against numpy on whole activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qsae_bench.metrics import METRICS, reconstruction
from qsae_bench.metrics.measurement import Rows
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


@pytest.fixture(scope="module")
def sums(activations):
    tensors = [torch.from_numpy(one) for one in activations]
    found = reconstruction.side_columns("q", *tensors) | reconstruction.shared_columns(*tensors[3:])
    arrays = {key: column.numpy() for key, column in found.items()}
    for side in ("r", "q"):  # both sides alike: only the cell's formulas are looked at
        arrays |= {f"{key[:-1]}{side}": column for key, column in arrays.items() if key.endswith("_q")}
    vectors = {key: arrays.pop(key) for key in list(arrays) if key.startswith("sum_")}
    return column_sums(Rows(arrays, vectors), np.ones((1, 5))) | {"d_model": 6.0}


def unexplained(x, x_hat, centre):
    return ((x - x_hat) ** 2).sum() / ((x - centre) ** 2).sum()


def test_each_definition_of_fvu(activations, sums):
    x, x_hat, active, valid, sinks = activations
    seen, ordinary = (x[valid], x_hat[valid]), (x[valid & ~sinks], x_hat[valid & ~sinks])
    expected = {
        "fvu": unexplained(*seen, seen[0].mean(0)),
        "fvu_no_sinks": unexplained(*ordinary, ordinary[0].mean(0)),
        "fvu_scalar": unexplained(*seen, seen[0].mean()),
        "fvu_scalar_bos": unexplained(x, x_hat, x.mean()),
        "mse": ((seen[0] - seen[1]) ** 2).mean(),
        "l0": active[valid].mean(),
        "sink_share": sinks.sum() / valid.sum(),
        "l2_ratio": np.linalg.norm(seen[1], axis=1).sum() / np.linalg.norm(seen[0], axis=1).sum(),
    }
    found = {key: METRICS[key].formula(sums).item() for key in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert expected["fvu_scalar"] < expected["fvu"], "one mean for all dimensions hides error"
