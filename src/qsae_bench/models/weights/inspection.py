"""What a recipe did to the decoder's weights: how many are quantized, and how far they moved.

A model that a recipe left as it was would pass every gate with a perfect score. So the share of the
decoder's weights that really are quantized is measured. A matrix is, when it is stored in fewer bits than
the reference's; where it is not (simulated quantization), its layer's answers to fixed vectors decide, and
then its floats, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights.probe import Shift, furthest, responses, shifts
from qsae_bench.models.weights.storage import Stored, float_weights, stored_matrices

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK_NUMBERS = 1 << 20
"""numbers whose products are held at once: 4 MB stay in a CPU's cache"""
MULTIPLIER = 0x9E3779B1
"""2^32 over the golden ratio: its multiples spread over all bits (Knuth, TAOCP 3, 6.4)"""

SMALLER = 0.95
"""of the reference's bits: what is stored in fewer is quantized, whatever it answers"""
SAME_NSR = {2: 1e-5, 4: 1e-9, 8: 1e-18}
"""bytes a number -> the shift of a matrix below which only the order of additions can differ"""


@dataclass(frozen=True)
class Quantized:
    """What a recipe did to the decoder's weights."""

    share: float
    """of the original elements that are quantized, 0 to 1"""
    simulated: bool
    """what is quantized is kept as floats: quality is real, speed and memory are not the recipe's"""
    skipped: tuple[str, ...] = ()
    """modules left as they were, such as ``mlp.down_proj in layers 3–5``"""
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    """``layer.path`` -> how far the matrix moved, as far as it was a linear layer and still is one"""

    @property
    def values(self) -> dict[str, float]:
        """By metric; means over matrices."""
        found = {"quantized_share": self.share}
        if self.shifts:
            count = len(self.shifts)
            found["weight_nsr"] = sum(one.nsr for one in self.shifts.values()) / count
            found["weight_gain_error"] = abs(sum(one.gain for one in self.shifts.values()) / count - 1)
        # a weight that is not a number makes the cell invalid by its logits, and is no value here
        return {key: value for key, value in found.items() if math.isfinite(value)}

    @property
    def furthest(self) -> tuple[str, float] | None:
        """The matrix whose gain is furthest from 1, and its gain."""
        name = furthest(self.shifts) if self.shifts else None
        return None if name is None else (name, self.shifts[name].gain)


def kept_floats(
    model: PreTrainedModel, blueprint: DecoderShapes
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """(layer, ``path.parameter``, weight) of every matrix that is kept as floats."""
    for layer, (block, matrices) in enumerate(zip(decoder_layers(model), blueprint.matrices, strict=True)):
        modules = dict(block.named_modules())
        for path, shapes in matrices.items():
            if path in modules:
                for name, weight in float_weights(modules[path], shapes).items():
                    yield layer, f"{path}.{name}", weight


def in_short(
    model: PreTrainedModel, blueprint: DecoderShapes, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """What is kept of the reference's weights: ``rows.*`` checksums and ``probe.*`` responses."""
    rows, probe = checksums(model, blueprint), responses(model, blueprint, dtype)
    return {f"rows.{key}": v for key, v in rows.items()} | {f"probe.{key}": v for key, v in probe.items()}


def checksums(model: PreTrainedModel, blueprint: DecoderShapes) -> dict[str, torch.Tensor]:
    """``layer.path.parameter`` -> int64 [rows], one for each row of every matrix kept as floats."""
    return {
        f"{layer}.{path}": row_checksums(weight).cpu()
        for layer, path, weight in kept_floats(model, blueprint)
    }


def row_checksums(weight: torch.Tensor) -> torch.Tensor:
    """int64 [rows] of ``weight`` [rows, …]: equal for equal bits, on any device.

    Each number's bits times an odd multiple of the golden ratio modulo 2^32, added up: integers, so the
    order of additions does not matter.
    """
    import torch

    rows = weight.detach().reshape(len(weight), -1).contiguous()
    bits = rows.view(torch.int16 if rows.dtype.itemsize == 2 else torch.int32)
    multiples = ((2 * torch.arange(bits.shape[1]) + 1) * MULTIPLIER).to(torch.int32).to(weight.device)
    step = max(1, CHUNK_NUMBERS // max(1, bits.shape[1]))
    return torch.cat([(part.to(torch.int32) * multiples).sum(1) for part in bits.split(step)])


def inspect(
    model: PreTrainedModel,
    blueprint: DecoderShapes,
    stored: Sequence[Stored],
    reference: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> Quantized:
    """What the recipe did. ``stored`` is how the weights lay before the model's first forward.

    ``reference`` is its weights in short, see :func:`in_short`.
    """
    own, rows = checksums(model, blueprint), _part(reference, "rows.")
    moved = shifts(responses(model, blueprint, dtype), _part(reference, "probe."))
    elements = quantized = simulated = 0.0
    now = {(one.layer, path): one for one in stored_matrices(model, blueprint) for path in one.paths}
    touched: dict[tuple[int, str], float] = {}
    for one in stored:
        smaller = not one.floats and one.bits < SMALLER * 8 * dtype.itemsize * one.elements
        share = 1.0
        if not smaller:
            name = f"{one.layer}.{one.paths[0]}"
            answers = (
                moved[name].nsr > SAME_NSR[dtype.itemsize]
                if name in moved and len(one.paths) == 1
                else None
            )
            share = _changed(one, blueprint, own, rows, answers)
        elements += one.elements
        quantized += share * one.elements
        # some libraries unpack at the first forward: the floats are then what is multiplied
        if not smaller or all(now[one.layer, path].floats for path in one.paths):
            simulated += share * one.elements
        touched.update({(one.layer, path): share for path in one.paths})
    mostly = bool(quantized) and simulated > quantized / 2
    return Quantized(quantized / elements, mostly, _skipped(touched), moved)


def _part(reference: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): v for key, v in reference.items() if key.startswith(prefix)}


def _changed(
    one: Stored,
    blueprint: DecoderShapes,
    own: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    answers: bool | None,
) -> float:
    """Share that is quantized of a module whose weights take as many bits as before.

    ``answers`` says whether the layer's answers differ from the reference's, None where it can't be asked.
    They decide first: the same numbers stored in another order, or in two halves, are no quantization, and
    a layer that rounds as it multiplies is one. Then floats are compared row by row.
    """
    if answers is False:
        return 0.0
    changed = elements = 0.0
    for path in one.paths:
        for name, shape in blueprint.matrices[one.layer][path].items():
            key = f"{one.layer}.{path}.{name}"
            mine, theirs = own.get(key), reference.get(key)
            elements += math.prod(shape)
            if mine is not None and theirs is not None and mine.shape == theirs.shape:
                changed += math.prod(shape) * float(mine.ne(theirs).double().mean())
            elif answers:
                changed += math.prod(shape)
    return 1.0 if answers and not changed else changed / elements


def _skipped(touched: Mapping[tuple[int, str], float]) -> tuple[str, ...]:
    """Modules of which nothing is quantized: whole layers first, then ``path (layers 0–2, 5)``."""
    paths = {layer: {path for at, path in touched if at == layer} for layer, _ in touched}
    bare = {
        layer: {p for (at, p), share in touched.items() if at == layer and not share} for layer in paths
    }
    whole = [layer for layer, found in bare.items() if found == paths[layer]]
    by_path: dict[str, list[int]] = {}
    for layer, found in bare.items():
        for path in sorted(found) if layer not in whole else ():
            by_path.setdefault(path, []).append(layer)
    lines = [f"everything in {_spans(whole)}"] if whole else []
    return (*lines, *(f"{path} in {_spans(layers)}" for path, layers in by_path.items()))


def _spans(layers: Sequence[int]) -> str:
    """``layers 0–2, 5``"""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    word = "layer" if len(layers) == 1 else "layers"
    return f"{word} " + ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
