"""What a flat FVU means, by cases whose answer is known, and by residuals moved by one position."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import stand_ins
from qsae_bench.stats.bootstrap import Estimate, estimate
from qsae_bench.stats.flat_fvu import drift_resolution, read_flat_fvu


def layer(drift=0.0, half=0.001, nsr=0.05, fvu=0.1, cross=0.12, survival=0.95):
    return {
        "fvu_drift": Estimate(drift, drift - half, drift + half), "perturbation_nsr": Estimate(nsr),
        "fvu": Estimate(fvu), "cross_fvu": Estimate(cross), "feature_survival": Estimate(survival),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "reading"),
    [
        ({}, "a finding"),
        ({"drift": 0.03}, "not flat"),
        ({"drift": -0.03}, "not flat"),
        ({"drift": 0.003}, "a finding"),  # shown, and a small part of the perturbation
        ({"half": 0.05}, "unresolved"),
        ({"half": 0.049, "nsr": 0.05}, "a finding"),
        ({"cross": 1.57, "survival": 0.0}, "blind"),
        ({"survival": 0.89}, "blind"),
        ({"cross": 0.2}, "blind"),
        ({"cross": 0.19}, "a finding"),
        ({"cross": 0.2, "drift": 0.03}, "not flat"),
        ({"nsr": 0.0}, None),
        ({"survival": float("nan")}, None),
    ],
)
def test_readings(given, reading):
    assert read_flat_fvu(layer(**given)) == reading


@pytest.mark.parametrize("missing", layer())
def test_without_a_value_that_decides_there_is_no_reading(missing):
    assert read_flat_fvu({key: value for key, value in layer().items() if key != missing}) is None


def test_drift_resolution_is_half_the_width_over_the_perturbation():
    assert drift_resolution(Estimate(0.2, 0.1, 0.4), Estimate(0.5)) == pytest.approx(0.3)
    for drift, moved in (
        (Estimate(0.2), 0.5),
        (Estimate(0.2, 0.1, 0.4), 0.0),
        (Estimate(0, 0, np.inf), 1.0),
    ):
        assert drift_resolution(drift, Estimate(moved)) is None


class MovedByOnePosition(torch.nn.Module):
    """A decoder layer whose output at each position is that of the one before, BOS left where it is."""

    def __init__(self, whole: torch.nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.whole, name)

    def forward(self, *args, **options):
        out = self.whole(*args, **options)
        moved = out.clone()
        moved[:, 2:] = out[:, 1:-1]
        moved[:, 1] = out[:, -1]
        return moved


def test_a_residual_moved_by_one_position_never_reads_as_a_finding(paired):
    """Its activations are the very same ones, so that FVU is flat whatever they are."""
    corpus = stand_ins.corpus(40, 24)
    corpus = dataclasses.replace(corpus, valid=corpus.ids != stand_ins.BOS)
    r, q = stand_ins.gemma3(), stand_ins.gemma3()
    first = stand_ins.LAYERS[0]
    q.model.layers[first] = MovedByOnePosition(q.model.layers[first])
    measurement, _ = paired(r, q, corpus, {first: stand_ins.jumprelu(first)})
    found = estimate(measurement, replicates=200).layers[first]
    assert found["fvu_drift"].value == pytest.approx(0, abs=1e-6)
    assert found["perturbation_nsr"].value > 0.5 and found["drift_resolution"].value < 0.01
    assert found["feature_survival"].value < 0.1
    assert read_flat_fvu(found) == "blind"
