"""Rounding to nearest against a loop and against quanto; wrong options take one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import needs, one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.backends.rtn import round_to_nearest, stored_bits
from qsae_bench.models.taps import decoder_layers


def first_linear(model):
    return decoder_layers(model)[0].mlp.gate_proj


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rounding_against_a_loop(bits, seed):
    weight = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32)
    weight[3] = 0
    found = round_to_nearest(torch.from_numpy(weight), bits).numpy()
    for row, rounded in zip(weight, found, strict=True):
        scale = np.abs(row).max() / (2 ** (bits - 1) - 1)
        if scale == 0:
            assert (rounded == 0).all()
            continue
        assert len(set(np.round(rounded / scale, 3))) <= 2**bits - 1
        assert np.abs(rounded - row).max() <= scale / 2 * (1 + 1e-5)
        assert np.abs(rounded).max() == pytest.approx(np.abs(row).max(), rel=1e-6)


@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
    group=st.sampled_from([0, 2, 3, 6]),
    symmetric=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rounding_in_groups_against_a_loop(bits, seed, group, symmetric):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(4, 6)) + 0.5).astype(np.float32)
    weight[3] = 0
    found = round_to_nearest(torch.from_numpy(weight), bits, group, symmetric).double().numpy()
    size = group or 6
    for row in range(4):
        for start in range(0, 6, size):
            part = weight[row, start : start + size].astype(np.float64)
            rounded = found[row, start : start + size]
            low, high = min(part.min(), 0), max(part.max(), 0)
            step = np.abs(part).max() / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
            if step == 0:
                assert (rounded == 0).all()
                continue
            on_grid = rounded / step
            assert np.abs(on_grid - np.rint(on_grid)).max() < 1e-3  # multiples of the step, 0 among them
            # nearest, but for the ends of an asymmetric grid, which its integer zero point moves
            assert np.abs(rounded - part).max() <= step * (0.5 if symmetric else 1.0) * (1 + 1e-4)
            assert np.ptp(np.rint(on_grid)) <= 2**bits - 1


def test_a_smaller_group_is_nearer_and_costs_its_scales():
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    errors = [float((round_to_nearest(weight, 4, g) - weight).square().sum()) for g in (8, 16, 32, 0)]
    assert errors == sorted(errors)
    assert stored_bits(weight, 4, 16) == 32 * 64 * 4 + 32 * 4 * 16
    assert stored_bits(weight, 4, 16, symmetric=False) == 32 * 64 * 4 + 32 * 4 * (16 + 4)
    assert stored_bits(weight, 3) == 32 * 64 * 3 + 32 * 16


@needs("optimum.quanto")
def test_eight_bits_are_quantos_to_the_bit(loaded):
    """An independent library's symmetric int8 a row is the control's."""
    theirs = first_linear(loaded("quanto_int8", "quanto", weights="qint8")).weight.dequantize()
    ours = first_linear(loaded("rtn_int8", "rtn", bits=8)).weight
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"bits": 1}, {"bits": 9}, {"bits": 4.0}, {"bits": True}, {"bits": 4, "group": 2},
        {"bits": 4, "group_size": -1}, {"bits": 4, "symmetric": 1}, {"bits": 4, "group_size": 2.0},
    ],
)  # fmt: skip
def test_wrong_rtn_options_take_one_line(loaded, options):
    with pytest.raises(QsaeError, match="backend rtn takes options") as caught:
        loaded("mine", "rtn", **options)
    one_line(caught.value)


def test_a_group_must_divide_a_row(loaded):
    with pytest.raises(QsaeError, match="group_size 50 does not divide a row of 192") as caught:
        loaded("mine", "rtn", bits=4, group_size=50)
    one_line(caught.value)
