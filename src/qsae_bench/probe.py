"""What each linear layer of the decoder makes of fixed random vectors: its weights, whatever holds them.

A packed weight can't be read without knowing its library's format, but it can be asked. With r a vector
of random signs, E‖Wr‖² = ‖W‖² and E⟨W_q r, W_r r⟩ = ⟨W_q, W_r⟩ (Hutchinson 1990), so a few vectors tell
how far a recipe moved the weights (``weight_nsr``) and whether its scales are right
(``weight_gain_error``). Behaviour alone need not tell: Gemma 3 normalises behind most of its matrices,
and their scale cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsae_bench.blueprint import Blueprint
from qsae_bench.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBES = 8
SEED = 0


@dataclass(frozen=True)
class Shift:
    """How a recipe's weights lie beside the reference's."""

    nsr: float
    """mean over matrices of ‖W_q − W_r‖² / ‖W_r‖²"""
    gain: float
    """mean over matrices of ⟨W_q, W_r⟩ / ‖W_r‖²: 1 where scales are right"""
    worst: str
    """the matrix whose gain is furthest from 1"""
    worst_gain: float


def signs(width: int) -> torch.Tensor:
    """±1 float32 [PROBES, width], the same on every machine."""
    import torch

    generator = torch.Generator().manual_seed(SEED + width)
    return torch.randint(0, 2, (PROBES, width), generator=generator).float() * 2 - 1


def responses(model: PreTrainedModel, blueprint: Blueprint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """``layer.path`` -> float32 [PROBES, out] of every layer that the original has as a linear one.

    The response to 0 is taken off, and with it a bias. Modules that a backend merged are left out.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    vectors: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for layer, (block, widths) in enumerate(zip(decoder_layers(model), blueprint.inputs, strict=True)):
            modules = dict(block.named_modules())
            device = block.get_parameter(next(name for name, _ in block.named_parameters())).device
            for path, width in widths.items():
                if path not in modules:
                    continue
                if width not in vectors:
                    vectors[width] = torch.cat([signs(width), torch.zeros(1, width)])
                answer = modules[path](vectors[width].to(device, dtype)).float()
                found[f"{layer}.{path}"] = (answer[:-1] - answer[-1]).cpu()
    return found


def shift(own: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> Shift | None:
    """The two sides compared over the matrices that both have; None where there is none."""
    gains, nsrs = {}, []
    for name, known in reference.items():
        if name in own and own[name].shape == known.shape:
            mine, theirs = own[name].double(), known.double()
            energy = float(theirs.square().sum())
            if energy > 0:
                gains[name] = float((mine * theirs).sum()) / energy
                nsrs.append(float((mine - theirs).square().sum()) / energy)
    if not gains:
        return None
    # a gain that is not a number is as far off as one can be
    worst = max(
        gains, key=lambda name: abs(gains[name] - 1) if gains[name] == gains[name] else float("inf")
    )
    return Shift(sum(nsrs) / len(nsrs), sum(gains.values()) / len(gains), worst, gains[worst])
