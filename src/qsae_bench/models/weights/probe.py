"""What each linear layer of the decoder makes of fixed random vectors: its weights, whatever holds them.

A packed weight can't be read without knowing its library's format, but it can be asked. With r a vector
of random signs, E‖Wr‖² = ‖W‖² and E⟨W_q r, W_r r⟩ = ⟨W_q, W_r⟩ (Hutchinson 1990), so a few vectors tell
how far a recipe moved the weights (``weight_nsr``) and whether its scales are right
(``weight_gain_error``). Behaviour alone need not tell: Gemma 3 normalises behind most of its matrices,
and their scale cancels.
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
SEED = 0


@dataclass(frozen=True)
class Shift:
    """How one matrix of a recipe lies beside the reference's."""

    nsr: float
    """‖W_q − W_r‖² / ‖W_r‖²"""
    gain: float
    """⟨W_q, W_r⟩ / ‖W_r‖²: 1 where the scale is right"""


def signs(width: int) -> torch.Tensor:
    """±1 float32 [PROBES, width], the same on every machine."""
    import torch

    generator = torch.Generator().manual_seed(SEED + width)
    return torch.randint(0, 2, (PROBES, width), generator=generator).float() * 2 - 1


def responses(
    model: PreTrainedModel, blueprint: DecoderShapes, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """``layer.path`` -> float32 [PROBES, out] of every layer that the original has as a linear one.

    A bias is taken off: the mean of the answers to a vector and to its negative. (The answer to 0 would do,
    if no kernel divided by a row's largest activation.) Modules that a backend merged are left out.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    vectors: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for layer, (block, widths) in enumerate(zip(decoder_layers(model), blueprint.inputs, strict=True)):
            modules = dict(block.named_modules())
            device = next((p.device for p in block.parameters()), torch.device("cpu"))
            for path, width in widths.items():
                if path not in modules:
                    continue
                if width not in vectors:
                    chosen = signs(width)
                    vectors[width] = torch.cat([chosen, -chosen[:1]])
                answer = modules[path](vectors[width].to(device, dtype)).float()
                bias = (answer[0] + answer[-1]) / 2
                found[f"{layer}.{path}"] = (answer[:-1] - bias).cpu()
    return found


def shifts(own: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> dict[str, Shift]:
    """``layer.path`` -> shift, of the matrices that both sides have."""
    found = {}
    for name, known in reference.items():
        if name in own and own[name].shape == known.shape:
            mine, theirs = own[name].double(), known.double()
            energy = float(theirs.square().sum())
            if energy > 0:
                nsr = float((mine - theirs).square().sum()) / energy
                found[name] = Shift(nsr, float((mine * theirs).sum()) / energy)
    return found


def furthest(found: Mapping[str, Shift]) -> str:
    """The matrix whose gain is furthest from 1; one that is not a number is as far as can be."""
    return max(
        found, key=lambda name: math.inf if math.isnan(found[name].gain) else abs(found[name].gain - 1)
    )
