"""Measure how many of the decoder's weights a quantization changed, and how far they moved.

A model that is left unquantized would pass every gate with a perfect score, so the share of the decoder's
weights that really are quantized is measured. A matrix counts as quantized if it is stored in fewer bits
than the reference's. If it is not (simulated quantization), its layer's outputs on fixed vectors are
compared with the reference's; if they differ, its floats are compared row by row.

A packed weight can't be read without knowing its library's format, but it can be applied. With r a vector
of random signs, E‖Wr‖² = ‖W‖² and E⟨W_q r, W_r r⟩ = ⟨W_q, W_r⟩ (Hutchinson 1990), so a few vectors estimate
how far a quantization moved the weights (``weight_nsr``) and whether its scales are right
(``weight_gain_error``). The model's output need not show this: Gemma 3 normalises after most of its
matrices, so that their scale cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights.storage import (
    StoredMatrix,
    float_weights,
    left_out,
    stored_matrices,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBES = 8
"""number of random vectors per width"""
PROBE_SEED = 0

CHUNK_NUMBERS = 1 << 20
"""numbers multiplied at once: 4 MB stay in a CPU's cache"""
MULTIPLIER = 0x9E3779B1
"""2^32 over the golden ratio: its multiples spread over all bits (Knuth, TAOCP 3, 6.4)"""

FEWER_BITS = 0.95
"""share of the reference's bits below which a matrix is quantized, whatever its layer's outputs are"""
SAME_NSR = {2: 1e-5, 4: 1e-9, 8: 1e-18}
"""bytes per number -> nsr of a matrix below which only the order of additions can differ"""


@dataclass(frozen=True)
class Shift:
    """Compare a quantized matrix with the reference's."""

    nsr: float
    """‖W_q − W_r‖² / ‖W_r‖²"""
    gain: float
    """⟨W_q, W_r⟩ / ‖W_r‖²: 1 if the scale is right"""


@dataclass(frozen=True)
class QuantizationEffect:
    """Hold what a quantization did to the decoder's weights."""

    share: float
    """share of the original elements that are quantized, 0 to 1"""
    simulated: bool
    """whether the quantized values are stored as floats: speed and memory are not the quantization's"""
    skipped: tuple[str, ...] = ()
    """modules that are not quantized, such as ``mlp.down_proj in layers 3–5``"""
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    """``layer.path`` -> how far the matrix moved, for what was a linear layer and still is one"""
    without: str = ""
    """what the method does besides and a simulation of it doesn't; "" if its quality is real"""

    @property
    def values(self) -> dict[str, float]:
        """Values by metric; means over matrices."""
        found = {"quantized_share": self.share}
        if self.shifts:
            count = len(self.shifts)
            found["weight_nsr"] = sum(one.nsr for one in self.shifts.values()) / count
            found["weight_gain_error"] = abs(sum(one.gain for one in self.shifts.values()) / count - 1)
        # a NaN among the weights makes the cell invalid through its logits; it has no value here
        return {key: value for key, value in found.items() if math.isfinite(value)}

    @property
    def furthest(self) -> tuple[str, float] | None:
        """Matrix whose gain is furthest from 1, and its gain."""
        gains = {name: shift.gain for name, shift in self.shifts.items()}
        return max(
            gains.items(),
            key=lambda item: math.inf if math.isnan(item[1]) else abs(item[1] - 1),
            default=None,
        )


def float_matrices(
    model: PreTrainedModel, original: DecoderShapes
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield (layer, ``path.parameter``, weight) of every matrix that is stored as floats."""
    for layer, (block, matrices) in enumerate(zip(decoder_layers(model), original.matrices, strict=True)):
        modules = dict(block.named_modules())
        for path, shapes in matrices.items():
            if path in modules:
                for name, weight in float_weights(modules[path], shapes).items():
                    yield layer, f"{path}.{name}", weight


def weight_summary(
    model: PreTrainedModel, original: DecoderShapes, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return what is stored of a reference's weights: ``rows.*`` checksums and ``probe.*`` responses."""
    rows, probe = checksums(model, original), responses(model, original, dtype)
    return {f"rows.{key}": v for key, v in rows.items()} | {f"probe.{key}": v for key, v in probe.items()}


def checksums(model: PreTrainedModel, original: DecoderShapes) -> dict[str, torch.Tensor]:
    """Return ``layer.path.parameter`` -> int64 [rows]: a checksum of each row of every matrix of floats."""
    return {
        f"{layer}.{path}": row_checksums(weight).cpu()
        for layer, path, weight in float_matrices(model, original)
    }


def row_checksums(weight: torch.Tensor) -> torch.Tensor:
    """Return int64 [rows] of ``weight`` [rows, …]: equal for equal bits, on any device.

    Sums each number's bits times an odd multiple of the golden ratio modulo 2^32. These are integers, so
    the order of additions does not matter.
    """
    import torch

    rows = weight.detach().reshape(len(weight), -1).contiguous()
    bits = rows.view(torch.int16 if rows.dtype.itemsize == 2 else torch.int32)
    multiples = ((2 * torch.arange(bits.shape[1]) + 1) * MULTIPLIER).to(torch.int32).to(weight.device)
    step = max(1, CHUNK_NUMBERS // max(1, bits.shape[1]))
    return torch.cat([(part.to(torch.int32) * multiples).sum(1) for part in bits.split(step)])


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


def inspect(
    model: PreTrainedModel,
    original: DecoderShapes,
    stored: Sequence[StoredMatrix],
    reference: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> QuantizationEffect:
    """Compare a quantized model's weights, after its first forward, with its reference's.

    ``stored`` is how they were stored before the first forward; ``reference`` is the reference's
    :func:`weight_summary`, and ``dtype`` its dtype.
    """
    own, rows = checksums(model, original), _part(reference, "rows.")
    moved = shifts(responses(model, original, dtype), _part(reference, "probe."))
    elements = quantized = simulated = 0.0
    now = {(one.layer, path): one for one in stored_matrices(model, original) for path in one.paths}
    shares: dict[tuple[int, str], float] = {}
    for one in stored:
        smaller = not one.floats and one.bits < FEWER_BITS * 8 * dtype.itemsize * one.elements
        share = 1.0
        if not smaller:
            name = f"{one.layer}.{one.paths[0]}"
            differs = (
                moved[name].nsr > SAME_NSR[dtype.itemsize]
                if name in moved and len(one.paths) == 1
                else None
            )
            share = _changed(one, original, own, rows, differs)
        elements += one.elements
        quantized += share * one.elements
        # some libraries unpack at the first forward, and multiply floats from then on
        if not smaller or all(now[one.layer, path].floats for path in one.paths):
            simulated += share * one.elements
        shares.update({(one.layer, path): share for path in one.paths})
    mostly = bool(quantized) and simulated > quantized / 2
    return QuantizationEffect(quantized / elements, mostly, _skipped(shares), moved, left_out(model))


def _part(reference: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): v for key, v in reference.items() if key.startswith(prefix)}


def _changed(
    one: StoredMatrix,
    original: DecoderShapes,
    own: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    differs: bool | None,
) -> float:
    """Return the quantized share of a module whose weights take as many bits as before.

    ``differs`` tells whether the layer's outputs differ from the reference's; None if it can't be probed.
    That decides first: the same numbers in another order, or in two halves, are not quantized, and a layer
    that rounds while it multiplies is. Then floats are compared row by row.
    """
    if differs is False:
        return 0.0
    changed = elements = 0.0
    for path in one.paths:
        for name, shape in original.matrices[one.layer][path].items():
            key = f"{one.layer}.{path}.{name}"
            mine, theirs = own.get(key), reference.get(key)
            elements += math.prod(shape)
            if mine is not None and theirs is not None and mine.shape == theirs.shape:
                changed += math.prod(shape) * float(mine.ne(theirs).double().mean())
            elif differs:
                changed += math.prod(shape)
    return 1.0 if differs and not changed else changed / elements


def _skipped(shares: Mapping[tuple[int, str], float]) -> tuple[str, ...]:
    """Describe what is not quantized at all: whole layers first, then ``path in layers 0–2, 5``."""
    paths = {layer: {path for at, path in shares if at == layer} for layer, _ in shares}
    bare = {layer: {p for (at, p), share in shares.items() if at == layer and not share} for layer in paths}
    whole = [layer for layer, found in bare.items() if found == paths[layer]]
    by_path: dict[str, list[int]] = {}
    for layer, found in bare.items():
        for path in sorted(found) if layer not in whole else ():
            by_path.setdefault(path, []).append(layer)
    lines = [f"everything in {_spans(whole)}"] if whole else []
    return (*lines, *(f"{path} in {_spans(layers)}" for path, layers in by_path.items()))


def _spans(layers: Sequence[int]) -> str:
    """Format layer numbers as ``layers 0–2, 5``."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    word = "layer" if len(layers) == 1 else "layers"
    return f"{word} " + ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
