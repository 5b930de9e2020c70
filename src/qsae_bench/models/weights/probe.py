"""Estimates how far weights moved by applying each linear layer of the decoder to fixed random vectors.

A packed weight can't be read without knowing its library's format, but it can be applied. With r a vector
of random signs, E‖Wr‖² = ‖W‖² and E⟨W_q r, W_r r⟩ = ⟨W_q, W_r⟩ (Hutchinson 1990), so a few vectors estimate
how far a quantization moved the weights (``weight_nsr``) and whether its scales are right
(``weight_gain_error``). The model's output need not show this: Gemma 3 normalises after most of its
matrices, so that their scale cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBES = 8
"""number of random vectors per width"""
PROBE_SEED = 0


@dataclass(frozen=True)
class Shift:
    """Compares a quantized matrix with the reference's."""

    nsr: float
    """‖W_q − W_r‖² / ‖W_r‖²"""
    gain: float
    """⟨W_q, W_r⟩ / ‖W_r‖²: 1 if the scale is right"""


def signs(width: int) -> torch.Tensor:
    """Return random signs, float32 [PROBES, width], the same on every machine."""
    import torch

    generator = torch.Generator().manual_seed(PROBE_SEED + width)
    return torch.randint(0, 2, (PROBES, width), generator=generator).float() * 2 - 1


def responses(
    model: PreTrainedModel, original: DecoderShapes, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return ``layer.path`` -> float32 [PROBES, out]: the output of every linear layer of the original.

    The bias is subtracted: it is the mean of the outputs for a vector and for its negative. (The output for
    0 would be simpler, but some kernels divide by a row's largest activation.) Modules that a backend
    merged are left out.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    vectors: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for layer, (block, widths) in enumerate(zip(decoder_layers(model), original.inputs, strict=True)):
            modules = dict(block.named_modules())
            device = next((p.device for p in block.parameters()), torch.device("cpu"))
            for path, width in widths.items():
                if path not in modules:
                    continue
                if width not in vectors:
                    chosen = signs(width)
                    vectors[width] = torch.cat([chosen, -chosen[:1]])
                output = modules[path](vectors[width].to(device, dtype)).float()
                bias = (output[0] + output[-1]) / 2
                found[f"{layer}.{path}"] = (output[:-1] - bias).cpu()
    return found


def shifts(own: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> dict[str, Shift]:
    """Return ``layer.path`` -> shift, for the matrices that both sides have."""
    found = {}
    for name, known in reference.items():
        if name in own and own[name].shape == known.shape:
            mine, theirs = own[name].double(), known.double()
            energy = float(theirs.square().sum())
            if energy > 0:
                nsr = float((mine - theirs).square().sum()) / energy
                found[name] = Shift(nsr, float((mine * theirs).sum()) / energy)
    return found


def furthest_gain(found: Mapping[str, Shift]) -> str:
    """Return the matrix whose gain is furthest from 1; NaN counts as the furthest."""
    return max(
        found, key=lambda name: math.inf if math.isnan(found[name].gain) else abs(found[name].gain - 1)
    )
