"""Frozen descriptions of what is measured. Picklable, hashable where they serve as keys, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError

REFERENCE = "reference"
PACKAGE_SCHEME = "package:"

BACKENDS = ("none", "transformers", "checkpoint", "hqq", "quanto", "torchao", "rtn", "python")
"""backends of :mod:`qsae_bench.models.backends`, named here so that checking an entry imports none"""

ENTRY_POINTS = "qsae_bench.backends"
"""entry point group in which a package registers a backend of its own, under the backend's name"""

CORPUS_KINDS = ("grammar", "pile10k", "wikitext2", "textfile", "random")
"""sources that :mod:`qsae_bench.measure.corpus.packing` can read"""

PACKINGS = ("documents", "concatenated")
"""how documents become sequences, see :class:`CorpusSpec`"""

L0_SLACK = 3.0
"""a reference's L0 further than this factor from what its SAEs were trained to is not sane"""


@dataclass(frozen=True)
class Bounds:
    """A closed range in which a healthy reference's metric lies."""

    min: float
    max: float

    def hold(self, value: float) -> bool:
        """False for NaN as well: a reference that is not a number is not sane."""
        return self.min <= value <= self.max


@dataclass(frozen=True)
class Shard:
    """One of the ``count`` runs of whole batches that a cell's sequences are split into."""

    index: int
    count: int

    def of_batches(self, sequences: int, batch_size: int) -> range:
        """The sequences of this shard: sizes differ by a batch at most, and may be 0."""
        batches = -(-sequences // batch_size)
        first, last = (batches * k // self.count for k in (self.index, self.index + 1))
        return range(first * batch_size, min(last * batch_size, sequences))


WHOLE = Shard(0, 1)


@dataclass(frozen=True)
class SaeSpec:
    """Where a model's SAEs come from: a sae-lens release, or a folder in sae-lens's own format.

    ``release``, ``id_template`` and ``hook`` may leave ``{layer}``, ``{next_layer}``, ``{width}`` and
    ``{l0}`` open.
    """

    d_in: int
    """width of the residual stream that the SAEs were trained on"""
    release: str | None = None
    """release name in sae-lens's registry"""
    id_template: str | None = None
    """id in that release"""
    folder: str | None = None
    """folder with one ``layer{L}`` each, instead of a release; ``package:`` paths allowed"""
    layers: tuple[int, ...] = ()
    """decoder layers it has an SAE for; none named: those that the model names"""
    width: str = ""
    l0: str = ""
    widths: tuple[str, ...] = ()
    """what ``--sae-width`` may choose from, where it may"""
    expected_l0: Mapping[str, Bounds] = field(default_factory=dict, hash=False)
    """what ``--sae-l0`` may choose from -> L0 over the layers that the SAEs were trained to"""
    d_sae: int = 0
    """features, where ``width`` does not say it"""
    hook: str = "blocks.{layer}.hook_resid_post"
    """TransformerLens's name of the place read; resid_pre of the next block is resid_post of this one"""
    centered: bool = False
    """trained on the residual stream less its mean over d_model (TransformerLens's centred weights)"""

    def sae_id(self, layer: int) -> str:
        """The release's id (or the folder's entry) for one layer."""
        if self.folder is not None:
            return f"layer{layer}"
        assert self.id_template is not None
        return self._filled(self.id_template, layer)

    def release_name(self) -> str:
        """The release, its width and l0 filled in."""
        assert self.release is not None
        return self._filled(self.release, 0)

    def hook_name(self, layer: int) -> str:
        return self._filled(self.hook, layer)

    def _filled(self, template: str, layer: int) -> str:
        return template.format(layer=layer, next_layer=layer + 1, width=self.width, l0=self.l0)

    @property
    def features(self) -> int:
        """d_sae: stated, or by ``width``: ``65k`` the nearest power of two, ``8x`` a multiple of d_in."""
        if self.d_sae:
            return self.d_sae
        if found := re.fullmatch(r"([1-9]\d*)([kmx])", self.width):
            number = int(found[1]) * {"k": 1000, "m": 10**6, "x": self.d_in}[found[2]]
            return number if found[2] == "x" else 1 << round(math.log2(number))
        return 0


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
    sae_every: SaeSpec | None = None
    """SAEs for ``--layers every``: a depth profile"""
    revision: str | None = None
    needs_gpu: bool = False
    min_gpu_gib: float = 0.0
    gated: bool = False
    default: bool = False
    """part of a run that names no models"""
    bos_token: str | None = None
    """begins each sequence where the tokenizer has no BOS of its own"""
    reference_bounds: Mapping[str, Bounds] = field(default_factory=dict, hash=False)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    """quantization -> metric -> the study's number, printed beside ours under ``--protocol study``"""
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """transformers' ``model_type`` and config values, beside n_layers and d_model: for ``plan`` and
    ``--synthetic``"""
    checkpoint_extra: int = 0
    """parameters in the checkpoint that are not loaded: a vision tower"""
    synthetic: bool = False
    """random weights of that architecture instead of the source's"""

    def with_layers(self, choice: str, width: str = "", l0: str = "") -> ModelSpec:
        """This model tapped at other layers, through SAEs of another width or l0.

        ``choice`` is ``""`` (the entry's own), ``all`` (every layer of its release), ``every`` (every
        decoder layer, as far as there is such a release), or layers by number.

        Raises:
            QsaeError: there is no such layer, width or l0.
        """
        every = self.sae_every if choice == "every" else None
        sae = self._chosen(every or self.sae, width, l0)
        known = sae.layers or self.layers
        layers = self.layers
        if choice in ("all", "every"):
            layers = known
        elif choice:
            layers = self._numbered(choice, known)
        bounds = dict(self.reference_bounds)
        if sae.l0 in sae.expected_l0:
            expected = sae.expected_l0[sae.l0]
            bounds.setdefault("l0", Bounds(expected.min / L0_SLACK, expected.max * L0_SLACK))
        return replace(self, layers=layers, sae=sae, reference_bounds=bounds)

    def _chosen(self, sae: SaeSpec, width: str, l0: str) -> SaeSpec:
        for option, value, known in (
            ("width", width, sae.widths or (sae.width,)),
            ("l0", l0, tuple(sae.expected_l0) or (sae.l0,)),
        ):
            if value and value not in known:
                offered = ", ".join(filter(None, known)) or "one only"
                raise QsaeError(f"model {self.name!r}: --sae-{option} {value}: its SAEs come in {offered}")
        return replace(sae, width=width or sae.width, l0=l0 or sae.l0)

    def _numbered(self, choice: str, known: tuple[int, ...]) -> tuple[int, ...]:
        try:
            layers = tuple(dict.fromkeys(int(part) for part in choice.split(",")))
        except ValueError:
            raise QsaeError(f"--layers {choice!r}: all, every, or numbers such as 9,17") from None
        if missing := [layer for layer in layers if layer not in known]:
            every = self.sae_every.layers if self.sae_every else ()
            hint = "; --layers every has one for each" if set(missing) <= set(every) else ""
            raise QsaeError(
                f"model {self.name!r}: no SAE for layer {_and(missing)}, only for {_and(known)}{hint}"
            )
        return layers


@dataclass(frozen=True)
class CheckpointSpec:
    """An already quantized checkpoint of one model."""

    source: str
    """hub id, or a folder"""
    revision: str | None = None
    file: str | None = None
    """the one file to read: a GGUF"""


@dataclass(frozen=True)
class QuantizationSpec:
    """A named recipe: a backend and the options it is called with."""

    name: str
    backend: str
    """one of ``BACKENDS``, or the name of an entry point in the group ``ENTRY_POINTS``"""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    function: str | None = None
    """``package.module:function``, for the ``python`` backend only"""
    folder: str = ""
    """where the entry stands: a function's module is looked for there too"""
    checkpoints: Mapping[str, CheckpointSpec] = field(default_factory=dict, hash=False)
    """model -> its quantized checkpoint, for the ``checkpoint`` backend only"""
    needs_gpu: bool = False
    gpu_dtype: str = ""
    """what it computes in on a GPU, where its kernels refuse the reference's bfloat16: that rounding is
    then part of what is measured"""
    requires: tuple[str, ...] = ()
    """packages that must be importable"""
    stored_bits: float = 0.0
    """bits a decoder weight takes (of a GGUF: on disk), for ``plan``; 0: as many as the reference's"""
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
    """sequences a forward pass; part of the experiment, see docs/metrics.md"""
    seed: int = 0
    split: str = "heldout"
    path: str | None = None
    """of the text, for the kind ``textfile`` only"""
    packing: str = "documents"
    """``documents``: a sequence is BOS + consecutive tokens of one document. ``concatenated``: documents
    with a BOS each, one after the other, cut wherever a sequence ends (the study's)"""
    every_position: bool = False
    """True also counts special tokens, BOS among them, in every metric (the study's)"""
    chat: bool = False
    """frame each sequence as a user's turn, by the tokenizer's own chat template"""


@dataclass(frozen=True)
class Selection:
    """What to measure, as the command line says it; empty means the default."""

    models: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    layers: str = ""
    """``all``, ``every`` or numbers, see :meth:`ModelSpec.with_layers`"""
    sae_width: str = ""
    sae_l0: str = ""
    keyword: str = ""
    """pytest's -k expression: a model or quantization that it names in full is part of the selection"""
    synthetic: bool = False
    """random weights of the real architecture"""
    corpus: str = ""
    """instead of each model's own; ``textfile:PATH`` for one's own text"""
    protocol: str = ""
    tokens: int = 0
    """predicted tokens a cell"""
    max_tokens: int = 0
    """as many while a gate is undecided; without it ``tokens``, where those are named, are all"""
    sequence_length: int = 0
    batch_size: int = 0


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

    @property
    def checkpoint(self) -> CheckpointSpec | None:
        """The quantized checkpoint that is loaded instead of the model's own, if there is one."""
        return self.quantization.checkpoints.get(self.model.name)

    @property
    def published(self) -> ModelSpec:
        """The model as its files name it: those of its quantized checkpoint, or its own."""
        found = self.checkpoint
        if found is None:
            return self.model
        return replace(self.model, source=found.source, revision=found.revision)


def _and(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def sae_name(model: ModelSpec, layer: int | None) -> str:
    """A layer's SAE as a run document has it: release or folder, and id. '' without a layer."""
    if layer is None:
        return ""
    home = model.sae.folder or model.sae.release_name()
    if model.synthetic:
        home = "random"
    elif model.sae.folder is not None and not home.startswith(PACKAGE_SCHEME):
        home = "local"  # no path of a user's in a document
    return f"{home}/{model.sae.sae_id(layer)}"


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
        return Path(__file__).parents[1] / source.removeprefix(PACKAGE_SCHEME)
    if source.startswith((".", "/", "~")):
        return Path(source).expanduser()
    return None
