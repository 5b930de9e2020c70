"""Backends that run out of memory, with a large tensor in the frame that does."""

from __future__ import annotations

import weakref

import torch

HELD: list[weakref.ref[torch.Tensor]] = []
"""what the failing frames held"""


def gpu(model, options):
    """As torch's caching allocator says it."""
    large = torch.zeros(8 << 20)
    HELD.append(weakref.ref(large))
    HELD.append(weakref.ref(model.model.layers[0].mlp.down_proj.weight))
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def host(model, options):
    """As the host's allocator says it: more than any machine's address space."""
    large = torch.zeros(8 << 20)
    HELD.append(weakref.ref(large))
    return torch.empty(1 << 50)
