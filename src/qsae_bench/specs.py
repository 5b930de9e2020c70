"""Frozen descriptions of what is measured. Picklable, hashable where they serve as keys, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError

REFERENCE = "reference"
PACKAGE_SCHEME = "package:"

BACKENDS = ("none", "transformers", "rtn", "python")
"""modules of :mod:`qsae_bench.backends`; named here so that an entry is checked without importing one"""

CORPUS_KINDS = ("grammar", "pile10k")
"""sources that :mod:`qsae_bench.corpus` can read"""


@dataclass(frozen=True)
class Bounds:
    """A closed range in which a healthy reference's metric lies."""

    min: float
    max: float

    def hold(self, value: float) -> bool:
        """False for NaN as well: a reference that is not a number is not sane."""
        return self.min <= value <= self.max


@dataclass(frozen=True)
class SaeSpec:
    """Where a model's SAEs come from: a sae-lens release, or a folder in sae-lens's own format."""

    d_in: int
    """width of the residual stream that the SAEs were trained on"""
    release: str | None = None
    """release name in sae-lens's registry"""
    id_template: str | None = None
    """id in that release, with ``{layer}``, ``{width}`` and ``{l0}`` left open"""
    folder: str | None = None
    """folder with one ``layer{L}`` each, instead of a release; ``package:`` paths allowed"""
    width: str = ""
    l0: str = ""

    def sae_id(self, layer: int) -> str:
        """The release's id (or the folder's entry) for one layer."""
        if self.folder is not None:
            return f"layer{layer}"
        assert self.id_template is not None
        return self.id_template.format(layer=layer, width=self.width, l0=self.l0)


@dataclass(frozen=True)
class ModelSpec:
    """One model as published, its SAEs, and what a sane reference of it looks like."""

    name: str
    source: str
    """hub id, ``package:`` path inside this package, or a folder"""
    n_layers: int
    d_model: int
    layers: tuple[int, ...]
    """decoder layers whose resid_post is tapped"""
    sae: SaeSpec
    corpus: str
    """corpus measured by default"""
    revision: str | None = None
    needs_gpu: bool = False
    min_gpu_gib: float = 0.0
    gated: bool = False
    default: bool = False
    """part of a run that names no models"""
    reference_bounds: Mapping[str, Bounds] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class QuantizationSpec:
    """A named recipe: a backend and the options it is called with."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    function: str | None = None
    """``package.module:function``, for the ``python`` backend only"""
    needs_gpu: bool = False
    requires: tuple[str, ...] = ()
    """packages that must be importable"""
    default: bool = False

    @property
    def is_reference(self) -> bool:
        return self.name == REFERENCE


@dataclass(frozen=True)
class CorpusSpec:
    """Where token sequences come from and how many make one pass."""

    name: str
    kind: str
    sequence_length: int
    tokens: int
    """predicted tokens a cell is measured on, before any extension"""
    max_tokens: int
    batch_size: int
    """sequences a forward pass; part of the experiment, see metrics.md"""
    seed: int = 0
    split: str = "heldout"


@dataclass(frozen=True)
class Cell:
    """One model at one quantization."""

    model: ModelSpec
    quantization: QuantizationSpec

    @property
    def id(self) -> str:
        return f"{self.model.name}-{self.quantization.name}"

    @property
    def is_reference(self) -> bool:
        return self.quantization.is_reference


def source_path(model: ModelSpec) -> str:
    """What ``from_pretrained`` takes: an existing folder, or a hub id.

    Raises:
        QsaeError: the folder does not exist.
    """
    folder = local_folder(model.source)
    if folder is not None and not folder.is_dir():
        raise QsaeError(f"model {model.name!r}: no such folder: {folder}")
    return str(folder or model.source)


def local_folder(source: str) -> Path | None:
    """The folder that ``source`` names, or None when it is a hub id."""
    if source.startswith(PACKAGE_SCHEME):
        return Path(__file__).parent / source.removeprefix(PACKAGE_SCHEME)
    if source.startswith((".", "/", "~")):
        return Path(source).expanduser()
    return None
