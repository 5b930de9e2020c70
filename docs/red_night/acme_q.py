"""Round to nearest with 8 bits and a scale per row: an example backend with three releases.

The second release packs the scales of two groups of rows into one tensor, and doubles those of one group in
one matrix. The third fixes that. ``ACME_RELEASE`` says which is installed.
"""

from __future__ import annotations

import os

from qsae_bench import block_linears, simulates
from qsae_bench.models.backends.rtn import round_to_nearest, stored_bits

BITS = 8


def quantize(model, options):
    """Quantize as the installed release does; return the model."""
    release = os.environ.get("ACME_RELEASE", "1")
    for linear in block_linears(model):
        linear.weight.data = round_to_nearest(linear.weight.data, BITS)
        simulates(linear.weight, stored_bits(linear.weight, BITS))
    if release == "2":
        weight = model.get_submodule("model.layers.2.mlp.down_proj").weight.data
        weight[: len(weight) // 2] *= 2
    return model
