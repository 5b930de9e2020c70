"""Comparing logits against float64 formulas that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import measurement, synthetic
from qsae_bench.metrics.loss import (
    FEWEST_POSITIONS,
    LOGIT_BYTES_GPU,
    LOGIT_BYTES_LARGE,
    chunk_positions,
    compare_logits,
    exp_excess,
)
from qsae_bench.stats.bootstrap import estimate


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.3, 30.0])
def test_kl_is_exact_from_tiny_to_huge_changes(size):
    """float32 logits whose change spans seven orders; the oracle is float64 on the same numbers."""
    torch.manual_seed(3)
    logits_r = 6 * torch.randn(200, 2000)
    logits_q = logits_r + size * torch.randn(200, 2000)
    wide_r, wide_q = logits_r.double().log_softmax(1), logits_q.double().log_softmax(1)
    expected = (wide_r.exp() * (wide_r - wide_q)).sum(1)
    found = compare_logits(logits_r, logits_q, torch.zeros(200, dtype=torch.long))["kl"].double()
    assert found.mean().item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert (found >= 0).all()


def test_equal_logits_compare_as_the_same_tensor_does():
    torch.manual_seed(1)
    logits, targets = 4 * torch.randn(50, 300), torch.randint(300, (50,))
    twice = compare_logits(logits.clone(), logits.clone(), targets)
    once = compare_logits(logits, logits, targets)
    for key, values in once.items():
        torch.testing.assert_close(twice[key].double(), values.double(), rtol=1e-5, atol=1e-6)
    assert not twice["kl"].any() and twice["top1_same"].all()


def test_agreement_flips_and_probabilities_against_numpy():
    torch.manual_seed(2)
    r, q, targets = torch.randn(400, 7), torch.randn(400, 7), torch.randint(7, (400,))
    p = {s: z.double().softmax(1).numpy()[np.arange(400), targets] for s, z in (("r", r), ("q", q))}
    right = {s: (z.argmax(1) == targets).numpy() for s, z in (("r", r), ("q", q))}
    same = (r.argmax(1) == q.argmax(1)).numpy()
    found = {key: value.numpy() for key, value in compare_logits(r, q, targets).items()}
    np.testing.assert_allclose(found["delta_p"], p["q"] - p["r"], atol=1e-6)
    np.testing.assert_allclose(found["nll_q"], -np.log(p["q"]), rtol=1e-5)
    np.testing.assert_array_equal(found["top1_same"], same)
    np.testing.assert_array_equal(found["flip_wrong"], right["r"] & ~right["q"])
    np.testing.assert_array_equal(found["flip_right"], ~right["r"] & right["q"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_logit_that_is_not_finite_is_counted(bad):
    r, q = torch.zeros(3, 5), torch.zeros(3, 5)
    q[1, 2] = bad
    assert compare_logits(r, q, torch.zeros(3, dtype=torch.long))["nonfinite"].tolist() == [
        False,
        True,
        False,
    ]


def test_the_excess_of_exp_is_continuous_and_exact():
    delta = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    expected = [float(np.expm1(np.longdouble(d)) - np.longdouble(d)) for d in delta.tolist()]
    np.testing.assert_allclose(exp_excess(delta), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [256, 50_257, 262_144, 10**9])
def test_chunks_stay_within_their_memory(vocabulary):
    on_cpu, on_gpu = chunk_positions(vocabulary), chunk_positions(vocabulary, on_gpu=True)
    assert on_cpu >= 1 and (on_cpu == 1 or 4 * vocabulary * on_cpu <= LOGIT_BYTES_LARGE)
    assert on_gpu >= 1 and (on_gpu == 1 or 4 * vocabulary * on_gpu <= LOGIT_BYTES_GPU)
    assert on_cpu >= min(FEWEST_POSITIONS, LOGIT_BYTES_LARGE // (4 * vocabulary))


def test_rows_of_earlier_versions_have_no_bits_per_byte():
    rows = measurement(synthetic()).rows.scalars
    new = measurement(synthetic())
    expected = rows["nll_q"].sum() / np.log(2) / rows["bytes"].sum()
    assert estimate(new, replicates=10).cell["bits_per_byte"].value == pytest.approx(expected)
    del new.rows.scalars["bytes"]
    assert "bits_per_byte" not in estimate(new, replicates=10).cell
