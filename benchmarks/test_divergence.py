"""How much of the output distribution moved, whichever direction the loss took?"""

from __future__ import annotations


def test_divergence(measured, gate):
    gate("kl_divergence", "top1_agreement")
    assert measured.estimates.cell["kl_divergence"].value >= 0
