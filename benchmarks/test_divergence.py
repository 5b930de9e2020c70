"""How much of the output distribution moved, whichever direction the loss took?"""

from __future__ import annotations

import pytest


@pytest.mark.gates("kl_divergence", "top1_agreement")
def test_divergence(measured, gate):
    gate()
    assert measured.estimates.cell["kl_divergence"].value >= 0
