"""Tell a name of a table in thresholds.toml that something can have from one that nothing has.

Models, quantizations and layers are those of the registry in use. Hardware can't be listed: a name is
refused if no run writes names of that form, or if it is almost the name of this machine's hardware.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Self

from qsae_bench.errors import did_you_mean, plain
from qsae_bench.machine import hardware_names
from qsae_bench.registry.entries import Registry

VENDORS = (
    "NVIDIA", "Tesla", "Quadro", "GeForce", "AMD", "AMD64", "Radeon", "Intel", "Intel(R)", "Intel64",
    "Apple", "Ampere",
)  # fmt: skip
"""first words of hardware's names. One that is almost such a word is a misspelling; any other may be new"""

LOOK_ALIKE = str.maketrans("oil", "011")
"""letters that are read as digits"""


@dataclass(frozen=True)
class KnownNames:
    """Hold the names that tables may have."""

    models: Mapping[str, Collection[int]]
    """model -> its layers that have an SAE"""
    quantizations: Collection[str]
    hardware: Callable[[], Collection[str]] = tuple
    """returns the names of this machine's hardware, as a run writes them"""

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """Return the names of a registry's entries and of this machine."""
        layers = {name: model.layers_with_saes for name, model in registry.models.items()}
        return cls(layers, tuple(registry.quantizations), hardware_names)

    def why_no_model(self, name: str, others: Collection[str] = ()) -> str:
        """Return why no model has this name, or ''; ``others`` are names that tables have besides."""
        if name in self.models or name in others:
            return ""
        hint = did_you_mean(name, [*self.models, *others])
        return f"unknown model{hint}; if it is one of your own, give its --registry too"

    def why_no_quantization(self, name: str) -> str:
        """Return why no quantization has this name, or ''."""
        if name in self.quantizations:
            return ""
        return f"unknown quantization{did_you_mean(name, self.quantizations)}"

    def why_no_layer(self, model: str, layer: int) -> str:
        """Return why no gate is about this layer, or ''; a ``model`` that is none stands for any."""
        known = self.models.get(model)
        if known is None:
            known = {number for layers in self.models.values() for number in layers}
        if layer in known:
            return ""
        having = ", ".join(map(str, sorted(known)))
        whose = model if model in self.models else "any model"
        return f"no SAE of {whose} reads layer {layer}, so nothing there is gated (layers: {having})"

    def why_no_hardware(self, name: str) -> str:
        """Return why no run is on hardware of this name, or ''."""
        if name != plain(name).strip() or not re.search(r"[^\W\d]", name):
            return "no hardware has such a name: write it as run.json does, under environment"
        first, more, _ = name.partition(" ")  # a word alone is an architecture, such as arm64
        near = difflib.get_close_matches(first.lower(), [v.lower() for v in VENDORS], n=1, cutoff=0.75)
        if near and more and first not in VENDORS:
            vendor = next(v for v in VENDORS if v.lower() == near[0])
            return f"no hardware has such a name (did you mean {vendor + name[len(first) :]!r}?)"
        for here in self.hardware():
            if name != here and _almost(name, here):
                return f"no hardware has such a name (did you mean {here!r}, which is this machine's?)"
        return ""


def _almost(name: str, here: str) -> bool:
    """Tell whether a name is another one but for case, spacing, look-alikes or the vendor's name."""
    return _bare(name) == _bare(here) or here.lower().endswith(f" {name.lower()}")


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower()).translate(LOOK_ALIKE)
