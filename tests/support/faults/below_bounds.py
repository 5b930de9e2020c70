"""Faults of a quantization to NF4 that bounds of twice the good one's values let pass: in block 2 of 6, or everywhere.

``nf4(model, options)`` rounds to NF4 and then plants what ``options["fault"]`` names; "" plants nothing.
"""

from __future__ import annotations

import torch

BLOCK = 2


def head_louder(model):
    """One of four heads is 1.3 times what it should be."""
    _block(model).self_attn.o_proj.weight.data[:, :48].mul_(1.3)


def rows_swapped(model):
    """Eight pairs of rows of a matrix have changed places."""
    weight = _block(model).mlp.up_proj.weight.data
    weight[:16] = weight[:16].reshape(8, 2, -1).flip(1).reshape(16, -1)


def neurons_zeroed(model):
    """32 of 768 neurons are gone."""
    _block(model).mlp.down_proj.weight.data[:, :32] = 0


def embedding_in_5_bits(model):
    """What should have been left alone, and with it the tied head."""
    from qsae_bench.models.backends.rtn import round_to_nearest

    weight = model.model.embed_tokens.weight
    weight.data = round_to_nearest(weight.data, 5)


def norms_in_e4m3(model):
    """Gains of the norms, 1 + weight, are stored in 8 bits."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = (1 + parameter.data).to(torch.float8_e4m3fn).to(parameter.dtype) - 1


def cache_in_4_bits(model):
    """Keys and values are rounded token by token."""
    from qsae_bench.models.backends.rtn import round_to_nearest

    def rounded(module, inputs, output):
        return round_to_nearest(output.reshape(-1, output.shape[-1]), 4).reshape(output.shape)

    for layer in model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.register_forward_hook(rounded)


def bos_noisy(model):
    """BOS begins each sequence, and its embedding has noise of its own size."""
    row = model.model.embed_tokens.weight.data[2]
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    row += noise * row.norm() / noise.norm()


def gains_opposed(model):
    """Every other matrix is 30% too large, the others 30% too small: their mean is right."""
    from qsae_bench.models.backends import block_linears

    for place, linear in enumerate(block_linears(model)):
        linear.weight.data *= (1.3, 0.7)[place % 2]


FAULTS = {
    "one head × 1.3": head_louder,
    "8 pairs of rows swapped": rows_swapped,
    "32 neurons zeroed": neurons_zeroed,
    "embedding and head in 5 bits": embedding_in_5_bits,
    "gains of the norms in e4m3": norms_in_e4m3,
    "K and V rounded to 4 bits": cache_in_4_bits,
    "BOS embedding with noise of 100%": bos_noisy,
    "gains ± 30% on alternate matrices": gains_opposed,
}


def nf4(model, options):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from qsae_bench.models.backends import block_linears, simulates

    for linear in block_linears(model):
        packed, state = quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
        linear.weight.data = dequantize_4bit(packed, state)
        simulates(linear.weight, int(4.13 * linear.weight.numel()))
    if fault := options.get("fault"):
        FAULTS[fault](model)
    return model


def _block(model):
    return model.model.layers[BLOCK]
