"""Faults planted into a freshly loaded reference, as a quantization backend might commit them."""

from __future__ import annotations

import torch


def nothing(model, options):
    """The unfaulted control."""
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
