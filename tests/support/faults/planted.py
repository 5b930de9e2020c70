"""Faults planted into a freshly loaded reference, as a quantization backend might commit them."""

from __future__ import annotations

import torch


def nothing(model, options):
    """A quantization that leaves the model as it was, silently."""
    return model


def scale_doubled(model, options):
    """One linear layer dequantized with twice its scale.

    The MLP's gate: of any other projection the scale cancels in Gemma 3 (see test_session.py).
    """
    model.model.layers[2].mlp.gate_proj.weight.data.mul_(2)
    return model


def group_scale_doubled(model, options):
    """The same for one of two groups of channels, of a layer whose whole scale would cancel."""
    weight = model.model.layers[2].mlp.down_proj.weight.data
    weight[: len(weight) // 2].mul_(2)
    return model


def layers_swapped(model, options):
    """Two blocks loaded into each other's place."""
    layers = model.model.layers
    layers[2], layers[3] = layers[3], layers[2]
    return model


def nan_weight(model, options):
    """One number of one matrix is not a number."""
    model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = torch.nan
    return model


# -- faults of a quantization backend ----------------------------------------------------------------


def _rounded(model, layers, factor=1.0):
    from qsae_bench.models.backends import simulates
    from qsae_bench.models.backends.rtn import round_to_nearest, stored_bits

    for layer in layers:
        for module in model.model.layers[layer].modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = round_to_nearest(module.weight.data, 8) * factor
                simulates(module.weight, stored_bits(module.weight, 8))
    return model


def half(model, options):
    """Only the first half of the blocks is quantized."""
    return _rounded(model, range(len(model.model.layers) // 2))


def scales_off(model, options):
    """Every scale is 1% too large."""
    return _rounded(model, range(len(model.model.layers)), 1.01)


def elsewhere(model, options):
    """On another device than was asked for."""
    return model.to("meta")


def one_matrix_elsewhere(model, options):
    """A packed weight left where it was packed."""
    model.model.layers[4].mlp.up_proj.to("meta")
    return model


def in_bfloat16(model, options):
    """In other numbers than the reference, which alone would move every metric."""
    return model.to(torch.bfloat16)


def blocks_in_bfloat16(model, options):
    """Rounded blocks in other numbers, embedding and head as they were."""
    _rounded(model, range(6)).model.layers.to(torch.bfloat16)
    return model


def more_tokens(model, options):
    """The vocabulary padded to a multiple of 64 more, as some kernels want it."""
    model.resize_token_embeddings(model.config.vocab_size + 64)
    return _rounded(model, range(6))


def fewer_layers(model, options):
    """A block was lost."""
    del model.model.layers[5]
    return _rounded(model, range(5))


def fails_forward(model, options):
    """Loads, and can't run."""

    def forward(*_):
        raise NotImplementedError("no kernel for this shape\nand a long tail")

    model.model.layers[3].mlp.forward = forward
    return model


HELD = []


def leaks(model, options):
    """Keeps a reference to the weights that it was given, as a cache by name might."""
    HELD.append({name: p.detach() for name, p in model.named_parameters()})
    return _rounded(model, range(6))


def no_model(model, options):
    """Something else came back."""
    return torch.nn.Linear(2, 2)


class _Stored(torch.nn.Module):
    """The same floats, kept in another way."""

    def __init__(self, linear, parts):
        super().__init__()
        self.parts = torch.nn.ParameterList(parts(linear.weight))


class _Transposed(_Stored):
    def __init__(self, linear):
        super().__init__(linear, lambda weight: [weight.T.contiguous()])

    def forward(self, x):
        return x @ self.parts[0]


class _InTwo(_Stored):
    def __init__(self, linear):
        super().__init__(linear, lambda weight: weight.chunk(2))

    def forward(self, x):
        return torch.cat([torch.nn.functional.linear(x, part) for part in self.parts], -1)


class _Rounding(torch.nn.Linear):
    """Fake quantization, as quantization-aware training has it: full weights, rounded at each product."""

    def forward(self, x):
        from qsae_bench.models.backends.rtn import round_to_nearest

        return torch.nn.functional.linear(x, round_to_nearest(self.weight, 4))


class _NoiseForOneRow(torch.nn.Linear):
    """Right for many rows; the kernel for a single one reads the wrong memory."""

    def forward(self, x):
        y = super().forward(x)
        if x.shape[:-1].numel() > 1:
            return y
        return torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y) * y.std()


def noise_for_one_row(model, options):
    from qsae_bench.models.backends import block_linears

    _rounded(model, range(6))
    for linear in block_linears(model):
        linear.__class__ = _NoiseForOneRow
    return model


def transposed(model, options):
    from qsae_bench.models.backends import replace_linears

    return replace_linears(model, _Transposed)


def in_two_parts(model, options):
    from qsae_bench.models.backends import replace_linears

    return replace_linears(model, _InTwo)


def rounds_as_it_multiplies(model, options):
    from qsae_bench.models.backends import block_linears

    for linear in block_linears(model):
        linear.__class__ = _Rounding
    return model
