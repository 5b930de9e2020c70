"""What a backend must not get wrong: whose model it returns, where, in which numbers, and quantized at all.

A model that a recipe left as it was would pass every gate with a perfect score. So the share of the
decoder's weights that really are quantized is measured. A weight is, when it is no longer kept as floats
of its original size; or, where it is (simulated quantization), when the floats differ from the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsae_bench.blueprint import Blueprint
from qsae_bench.errors import QsaeError
from qsae_bench.footprint import Stored, float_weights, stored_matrices
from qsae_bench.probe import Shift, responses, shift
from qsae_bench.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK_NUMBERS = 1 << 24
"""numbers whose products are held at once"""
MULTIPLIER = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples spread over all bits (Knuth, TAOCP 3, 6.4)"""


@dataclass(frozen=True)
class Quantized:
    """What a recipe did to the decoder's weights."""

    share: float
    """of the original elements that are quantized, 0 to 1"""
    simulated: bool
    """what is quantized is kept as floats: quality is real, speed and weight_bytes are the reference's"""
    skipped: tuple[str, ...] = ()
    """modules left as they were, such as ``mlp.down_proj in layers 3–5``"""
    shift: Shift | None = None
    """how far the weights moved"""

    @property
    def values(self) -> dict[str, float]:
        """By metric."""
        found = {"quantized_share": self.share}
        if self.shift is not None:
            found |= {"weight_nsr": self.shift.nsr, "weight_gain_error": abs(self.shift.gain - 1)}
        # a weight that is not a number makes the cell invalid by its logits, and is no value here
        return {key: value for key, value in found.items() if math.isfinite(value)}


# -- whose model, where, in which numbers -----------------------------------------------------------


def check_model(
    model: PreTrainedModel, blueprint: Blueprint, d_model: int, device: str, dtype: torch.dtype
) -> None:
    """Refuse a model that is not the reference's in shape, place or numbers.

    Raises:
        QsaeError: says what differs; the caller adds which cell.
    """
    vocabulary = len(model.get_input_embeddings().weight)
    output = model.get_output_embeddings()
    head = getattr(output, "out_features", None) or output.weight.shape[0]
    blocks = len(decoder_layers(model))
    for what, found, expected in (
        ("vocabulary", vocabulary, blueprint.vocabulary),
        ("head", head, blueprint.vocabulary),
        ("decoder blocks", blocks, len(blueprint.matrices)),
        ("width", model.get_input_embeddings().weight.shape[1], d_model),
    ):
        if found != expected:
            raise QsaeError(f"the model that came back has {what} {found}, the reference's is {expected}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        place = tensor.device.type
        if device != "auto" and place != device:
            raise QsaeError(f"the model that came back has {name} on {place}; {device} was asked for")
    for name, weight in _floats(model, blueprint):
        if weight.dtype != dtype:
            raise QsaeError(
                f"the model that came back has {name} in {_short(weight.dtype)}, not in {_short(dtype)} as "
                "the reference: their difference would be the rounding's, not the recipe's"
            )


def _floats(model: PreTrainedModel, blueprint: Blueprint) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that every recipe leaves as floats, and those that this one did."""
    yield "its input embedding", model.get_input_embeddings().weight
    for layer, path, weight in kept_floats(model, blueprint):
        yield f"layer {layer}'s {path}", weight


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tokenizer(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a checkpoint whose token ids mean other tokens.

    Raises:
        QsaeError: names the first token that differs.
    """
    mine, theirs = own.get_vocab(), other.get_vocab()
    for token, index in sorted(mine.items(), key=lambda item: item[1]):
        if index < vocabulary and theirs.get(token) != index:
            found = "has no such token" if token not in theirs else f"has it at {theirs[token]}"
            raise QsaeError(
                f"its tokenizer is another: token {token!r} is {index} in the model's own and the "
                f"checkpoint's {found}"
            )


# -- quantized at all -------------------------------------------------------------------------------


def kept_floats(model: PreTrainedModel, blueprint: Blueprint) -> Iterator[tuple[int, str, torch.Tensor]]:
    """(layer, ``path.parameter``, weight) of every matrix that is kept as floats."""
    for layer, (block, matrices) in enumerate(zip(decoder_layers(model), blueprint.matrices, strict=True)):
        modules = dict(block.named_modules())
        for path, shapes in matrices.items():
            if path in modules:
                for name, weight in float_weights(modules[path], shapes).items():
                    yield layer, f"{path}.{name}", weight


def in_short(model: PreTrainedModel, blueprint: Blueprint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What is kept of the reference's weights: ``rows.*`` checksums and ``probe.*`` responses."""
    rows, probe = checksums(model, blueprint), responses(model, blueprint, dtype)
    return {f"rows.{key}": v for key, v in rows.items()} | {f"probe.{key}": v for key, v in probe.items()}


def checksums(model: PreTrainedModel, blueprint: Blueprint) -> dict[str, torch.Tensor]:
    """``layer.path.parameter`` -> int64 [rows], one for each row of every matrix kept as floats."""
    return {
        f"{layer}.{path}": row_checksums(weight).cpu()
        for layer, path, weight in kept_floats(model, blueprint)
    }


def row_checksums(weight: torch.Tensor) -> torch.Tensor:
    """int64 [rows] of ``weight`` [rows, …]: equal for equal bits, on any device.

    Each number's bits times an odd multiple of the golden ratio, added up modulo 2^64: integers, so the
    order of additions does not matter.
    """
    import torch

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]
    rows = weight.detach().reshape(len(weight), -1).contiguous().view(bits)
    signed = MULTIPLIER - 2**64 if MULTIPLIER >= 2**63 else MULTIPLIER
    multiples = (2 * torch.arange(rows.shape[1], device=weight.device) + 1) * signed
    step = max(1, CHUNK_NUMBERS // max(1, rows.shape[1]))
    return torch.cat([(part.long() * multiples).sum(1) for part in rows.split(step)])


def inspect(
    model: PreTrainedModel,
    blueprint: Blueprint,
    stored: Sequence[Stored],
    reference: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> Quantized:
    """What the recipe did. ``stored`` is how the weights lay before the model's first forward.

    ``reference`` is its weights in short; a matrix that they lack counts as changed.
    """
    own, rows = checksums(model, blueprint), _part(reference, "rows.")
    touched: dict[tuple[int, str], float] = {}
    elements = quantized = simulated = 0.0
    now = {(one.layer, path): one for one in stored_matrices(model, blueprint) for path in one.paths}
    for one in stored:
        shapes = {path: blueprint.matrices[one.layer][path] for path in one.paths}
        share = 1.0
        if one.floats:
            (path,) = one.paths
            share = _changed(f"{one.layer}.{path}", shapes[path], own, rows)
        elements += one.elements
        quantized += share * one.elements
        # some libraries unpack at the first forward: the floats are then what is multiplied
        if one.floats or all(now[one.layer, path].floats for path in one.paths):
            simulated += share * one.elements
        touched.update({(one.layer, path): share for path in one.paths})
    moved = shift(responses(model, blueprint, dtype), _part(reference, "probe."))
    mostly = bool(quantized) and simulated > quantized / 2
    return Quantized(quantized / elements, mostly, _skipped(touched), moved)


def _part(reference: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): v for key, v in reference.items() if key.startswith(prefix)}


def _changed(
    where: str,
    shapes: Mapping[str, Sequence[int]],
    own: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
) -> float:
    """Share of a module's elements in rows that differ from the reference's."""
    changed = 0.0
    for name, shape in shapes.items():
        mine, theirs = own[f"{where}.{name}"], reference.get(f"{where}.{name}")
        differs = 1.0
        if theirs is not None and theirs.shape == mine.shape:
            differs = float(mine.ne(theirs).double().mean())
        changed += differs * math.prod(shape)
    return changed / sum(map(math.prod, shapes.values()))


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
