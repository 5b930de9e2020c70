"""Describe where a model's SAEs come from and what they must look like."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bounds:
    """Hold a closed range in which a sane reference's metric lies."""

    min: float
    max: float

    def contains(self, value: float) -> bool:
        """Return whether ``value`` lies in the range: False for NaN, which no sane reference gives."""
        return self.min <= value <= self.max


def is_residual_after(hook: str, layer: int) -> bool:
    """Return whether a hook's name, of TransformerLens or transformers, is the residual after a block."""
    return bool(
        re.fullmatch(
            rf"blocks\.{layer}\.hook_resid_post|blocks\.{layer + 1}\.hook_resid_pre"
            rf"|(?:.+\.)?(?:layers|h)\.(?:{layer}(?:\.output)?|{layer + 1}\.input)",
            hook,
        )
    )


@dataclass(frozen=True)
class SaeSpec:
    """Name a model's SAEs: a sae-lens release, or a folder in sae-lens's own format.

    ``release``, ``id_template`` and ``hook`` are templates in which ``{layer}``, ``{next_layer}``,
    ``{width}`` and ``{l0}`` are filled in.
    """

    d_in: int
    """width of the residual stream that the SAEs were trained on"""
    release: str | None = None
    """release name in sae-lens's registry"""
    id_template: str | None = None
    """id in that release"""
    folder: str | None = None
    """folder with a subfolder ``layer{L}`` for each layer, instead of a release; ``package:`` paths
    allowed"""
    layers: tuple[int, ...] = ()
    """decoder layers that have an SAE; empty: those that the model names"""
    width: str = ""
    l0: str = ""
    widths: tuple[str, ...] = ()
    """choices of ``--sae-width``; empty: there is only ``width``"""
    expected_l0: Mapping[str, Bounds] = field(default_factory=dict, hash=False)
    """choices of ``--sae-l0`` -> range, over the layers, of the L0 that the SAEs were trained to"""
    d_sae: int = 0
    """number of features, where ``width`` does not tell it"""
    hook: str = "blocks.{layer}.hook_resid_post"
    """TransformerLens's name of the residual stream after the layer, which is what is read: resid_post of
    its block, or resid_pre of the next"""
    centered: bool = False
    """trained on the residual stream minus its mean over d_model (TransformerLens's centred weights)"""

    def sae_id(self, layer: int) -> str:
        """Return the release's id (or the folder's subfolder) of one layer's SAE."""
        if self.folder is not None:
            return f"layer{layer}"
        assert self.id_template is not None
        return self._filled(self.id_template, layer)

    def release_name(self) -> str:
        """Return the release's name with width and l0 filled in."""
        assert self.release is not None
        return self._filled(self.release, 0)

    def hook_name(self, layer: int) -> str:
        """Return TransformerLens's name of the activation that the layer's SAE was trained on."""
        return self._filled(self.hook, layer)

    def _filled(self, template: str, layer: int) -> str:
        return template.format(layer=layer, next_layer=layer + 1, width=self.width, l0=self.l0)

    @property
    def features(self) -> int:
        """Number of features: ``d_sae``, or ``width`` (``65k``: nearest power of 2; ``8x``: times d_in)."""
        if self.d_sae:
            return self.d_sae
        if found := re.fullmatch(r"([1-9]\d*)([kmx])", self.width):
            number = int(found[1]) * {"k": 1000, "m": 10**6, "x": self.d_in}[found[2]]
            return number if found[2] == "x" else 1 << round(math.log2(number))
        return 0
