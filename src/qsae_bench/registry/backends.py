"""Declare every backend: where its loader is, which modules it imports, and which extra installs them.

A backend is added here and as a module of :mod:`qsae_bench.models.backends`. The loader is named as text,
so that an entry's backend is checked without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ENTRY_POINTS = "qsae_bench.backends"
"""entry point group in which an installed package registers a backend of its own, under the backend's
name"""

Needs = Mapping[str, str]
"""module that is imported -> the extra of this package that installs it; "" where there is none"""


@dataclass(frozen=True)
class Backend:
    """Describe one way to load a quantized model."""

    load: str
    """``module:function``, relative to :mod:`qsae_bench.models.backends`"""
    needs: Needs = field(default_factory=dict, hash=False)


BACKENDS: Mapping[str, Backend] = {
    "none": Backend("unquantized:load_published"),
    "transformers": Backend("libraries:load_with_transformers"),
    "checkpoint": Backend("checkpoint:load"),
    "hqq": Backend("libraries:load_with_hqq", {"hqq": "hqq"}),
    "quanto": Backend("libraries:load_with_quanto", {"optimum.quanto": "quanto"}),
    "torchao": Backend("libraries:load_with_torchao", {"torchao": "torchao"}),
    "rtn": Backend("rtn:load"),
    "python": Backend("python:load"),
}

METHODS: Mapping[str, Needs] = {
    "bitsandbytes": {"bitsandbytes": ""},
    "quanto": {"optimum.quanto": "quanto"},
    "torchao": {"torchao": "torchao"},
    "gptq": {"gptqmodel": "gptq", "optimum.gptq": "gptq"},
    "awq": {"gptqmodel": "gptq"},
    "auto-round": {"auto_round": "auto-round"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}
"""transformers' ``quant_method`` -> what it needs; of other methods transformers itself says what is
missing"""

GGUF: Needs = {"gguf": "gguf"}
"""what a checkpoint needs that is a GGUF file"""

EXTRAS: Needs = {
    module: extra
    for needs in (*(backend.needs for backend in BACKENDS.values()), *METHODS.values(), GGUF)
    for module, extra in needs.items()
}
"""every module of the tables above -> its extra, for entries that name such a module themselves"""


def registered_backends() -> tuple[str, ...]:
    """Return the names of the backends that installed packages register."""
    from importlib import metadata

    return tuple(point.name for point in metadata.entry_points(group=ENTRY_POINTS))
