"""Count what a model's weights take: bytes in all, and bits of each matrix of its decoder blocks.

All stored tensors count, whatever library stored them: parameters, buffers that are saved, the tensors
inside tensor subclasses, and quantization state in attributes. ``bits_per_weight`` follows exllamav3's
convention: stored bits of the ≥ 2-D weights of the decoder blocks, scales and codebooks included, divided
by their original element count; embeddings, head, norms and biases are left out.

Count before a model's first forward: some libraries keep repacked copies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from qsae_bench.models.architecture import DecoderShapes, Shape
from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MIN_FLOAT_BYTES = 2
"""size of the smallest float that is not a quantized form, as float8 is"""


@dataclass(frozen=True)
class StoredMatrix:
    """Describe how the matrices of one module, or of all that a backend merged in a block, are stored."""

    layer: int
    paths: tuple[str, ...]
    """the original's modules in the block: one, such as ``mlp.down_proj``, unless they are merged"""
    elements: int
    """number of elements of the original's matrices"""
    bits: int
    floats: bool
    """whether they are stored as floats of their original size"""


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the stored bytes of all parameters and quantization state, shared tensors counted once."""
    found = [tensor for module in model.modules() for tensor in _tensors(_saved(module))]
    for block in decoder_layers(model):
        found += [tensor for module in block.modules() for tensor in _tensors(_attributes(module))]
    return _bytes(found)


def bits_per_weight(stored: Iterable[StoredMatrix]) -> float:
    """Return the stored bits ÷ original elements over the decoder blocks' matrices."""
    every = list(stored)
    return sum(one.bits for one in every) / sum(one.elements for one in every)


def stored_matrices(model: PreTrainedModel, original: DecoderShapes) -> list[StoredMatrix]:
    """Return how every matrix of the decoder blocks is stored."""
    found = []
    for layer, (block, matrices) in enumerate(zip(decoder_layers(model), original.matrices, strict=True)):
        modules = dict(block.named_modules())
        present = {path: shapes for path, shapes in matrices.items() if path in modules}
        for path, shapes in present.items():
            elements = sum(map(prod, shapes.values()))
            floats = len(float_weights(modules[path], shapes)) == len(shapes)
            found.append(StoredMatrix(layer, (path,), elements, _bits(modules[path].modules()), floats))
        if merged := tuple(path for path in matrices if path not in modules):
            elements = sum(prod(shape) for path in merged for shape in matrices[path].values())
            inside = tuple(f"{path}." for path in present)
            added = [
                module for path, module in modules.items()
                if path and path not in original.others and not f"{path}.".startswith(inside)
            ]  # fmt: skip
            found.append(StoredMatrix(layer, merged, elements, _bits(added), floats=False))
    return found


def float_weights(module: torch.nn.Module, shapes: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """Return parameter -> its tensor, for those that the module stores as floats of the original size."""
    found: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        same = (
            tensor for inner in module.modules() for tensor in _tensors(_weights(inner))
            if tensor.is_floating_point() and tensor.dtype.itemsize >= MIN_FLOAT_BYTES
            and tensor.numel() == prod(shape)
        )  # fmt: skip
        if (tensor := next(same, None)) is not None:
            found[name] = tensor.reshape(shape)
    return found


def _bits(modules: Iterable[torch.nn.Module]) -> int:
    """Count the bits of the weights that these modules hold themselves, without their children's."""
    simulated, found = 0, []
    for module in modules:
        bits = getattr(getattr(module, "weight", None), "qsae_simulated_bits", None)
        if bits is not None:  # rounded values stored as floats count as a packed form would
            simulated += bits
        else:
            found += list(_tensors(_weights(module)))
    return simulated + 8 * _bytes(found)


def left_out(model: PreTrainedModel) -> str:
    """Return what a backend that simulates a method has declared as left out, "" if nothing."""
    weights = (getattr(m, "weight", None) for block in decoder_layers(model) for m in block.modules())
    return next(filter(None, (getattr(w, "qsae_simulated_without", "") for w in weights)), "")


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    sizes: dict[int, int] = {}
    for tensor in tensors:
        place = tensor.data_ptr()
        sizes[place] = max(sizes.get(place, 0), tensor.nbytes)
    return sum(sizes.values())


# -- where a module has tensors -------------------------------------------------------------------


def _saved(module: torch.nn.Module) -> dict[str, Any]:
    """Return the module's parameters, and the buffers that are part of a checkpoint."""
    unsaved = module._non_persistent_buffers_set
    return {**module._parameters, **{k: b for k, b in module._buffers.items() if k not in unsaved}}


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Return the module's other attributes, such as HQQ's scales and bitsandbytes' state."""
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


def _weights(module: torch.nn.Module) -> dict[str, Any]:
    found = {**_saved(module), **_attributes(module)}
    return {key: value for key, value in found.items() if key != "bias"}


def _tensors(thing: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Yield every plain tensor in a container, tensor subclass, state object or a tensor's attributes."""
    import torch

    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, torch.nn.Module):
        return
    seen.add(id(thing))
    inside: Iterable[Any] = ()
    if isinstance(thing, torch.Tensor):
        if hasattr(thing, "__tensor_flatten__"):
            inside = [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
        else:
            yield thing.detach()
            inside = [value for key, value in vars(thing).items() if key != "grad_fn"]
    elif isinstance(thing, Mapping):
        inside = thing.values()
    elif isinstance(thing, (list, tuple)):
        inside = thing
    elif hasattr(thing, "__dict__") and not callable(thing):
        inside = vars(thing).values()
    for part in inside:
        yield from _tensors(part, seen)
