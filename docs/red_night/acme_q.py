"""A quantization backend of one's own, three releases of it: round to nearest, 8 bits, a scale per row.

The second release packs the scales of two groups of rows into one tensor, and gets the second group's wrong
in one matrix. The third mends that. ``ACME_RELEASE`` says which is installed.
"""

from __future__ import annotations

import os

from qsae_bench.models.backends import block_linears, simulates
from qsae_bench.models.backends.rtn import round_to_nearest, stored_bits

BITS = 8


def quantize(model, options):
    release = os.environ.get("ACME_RELEASE", "1")
    for linear in block_linears(model):
        linear.weight.data = round_to_nearest(linear.weight.data, BITS)
        simulates(linear.weight, stored_bits(linear.weight, BITS))
    if release == "2":
        weight = model.get_submodule("model.layers.2.mlp.down_proj").weight.data
        weight[: len(weight) // 2] *= 2
    return model
