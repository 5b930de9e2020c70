"""Define what is measured as frozen dataclasses: models, quantizations, corpora, cells and selections.

They are picklable, hashable where they serve as keys, and need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.registry.sae_spec import Bounds, SaeSpec

REFERENCE = "reference"
"""name of the quantization that leaves the model as published"""

PACKAGE_SCHEME = "package:"
"""prefix of a path that is relative to this package's own folder"""

CORPUS_KINDS = ("grammar", "pile10k", "wikitext2", "textfile", "random")
"""kinds of text that :mod:`qsae_bench.measure.corpus.packing` can read"""

PACKINGS = ("documents", "concatenated")
"""how documents become sequences, see :class:`CorpusSpec`"""

L0_SLACK = 3.0
"""factor by which a sane reference's L0 may differ from the one that its SAEs were trained to"""


@dataclass(frozen=True)
class Shard:
    """Identify one of ``count`` runs of whole batches that a cell's sequences are split into."""

    index: int
    count: int

    def of_batches(self, sequences: int, batch_size: int) -> range:
        """Return the indices of this shard's sequences; sizes differ by a batch at most and may be 0."""
        batches = -(-sequences // batch_size)
        first, last = (batches * k // self.count for k in (self.index, self.index + 1))
        return range(first * batch_size, min(last * batch_size, sequences))


WHOLE = Shard(0, 1)


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model as published, its SAEs, and the bounds that a sane reference keeps."""

    name: str
    source: str
    """hub id, ``package:`` path inside this package, or a folder"""
    n_layers: int
    d_model: int
    layers: tuple[int, ...]
    """decoder layers whose resid_post is tapped"""
    sae: SaeSpec
    corpus: str
    """name of the corpus measured by default"""
    sae_every: SaeSpec | None = None
    """SAEs for ``--layers every``: a depth profile"""
    revision: str | None = None
    needs_gpu: bool = False
    min_gpu_gib: float = 0.0
    gated: bool = False
    default: bool = False
    """whether a run that names no models includes it"""
    bos_token: str | None = None
    """token that begins each sequence if the tokenizer has no BOS of its own"""
    reference_bounds: Mapping[str, Bounds] = field(default_factory=dict, hash=False)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    """quantization -> metric -> the study's number, printed next to the measured one under ``--protocol
    study``"""
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """transformers' ``model_type`` and config values besides n_layers and d_model, for ``plan`` and
    ``--synthetic``"""
    checkpoint_extra: int = 0
    """number of parameters in the checkpoint that are not loaded: a vision tower's"""
    synthetic: bool = False
    """use random weights of that architecture instead of the source's"""

    @property
    def layers_with_saes(self) -> frozenset[int]:
        """Layers that some choice of ``--layers`` selects."""
        every = self.sae_every.layers if self.sae_every else ()
        return frozenset((*self.layers, *self.sae.layers, *every))

    def with_layers(self, choice: str, width: str = "", l0: str = "") -> ModelSpec:
        """Return this model tapped at other layers, through SAEs of another width or l0.

        ``choice`` is ``""`` (the entry's own layers), ``all`` (every layer of its release), ``every``
        (every decoder layer, if there is a release for them), or numbers separated by commas. An empty
        ``width`` or ``l0`` is the default.

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

    def sae_name(self, layer: int | None) -> str:
        """Return a layer's SAE as run documents name it: release or folder, and id; "" without a layer."""
        if layer is None:
            return ""
        origin = self.sae.folder or self.sae.release_name()
        if self.synthetic:
            origin = "random"
        elif self.sae.folder is not None and not origin.startswith(PACKAGE_SCHEME):
            origin = "local"  # a user's path doesn't belong in a document
        return f"{origin}/{self.sae.sae_id(layer)}"

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
                f"model {self.name!r}: no SAE for layer {_joined(missing)}, only for {_joined(known)}{hint}"
            )
        return layers


@dataclass(frozen=True)
class CheckpointSpec:
    """Name an already quantized checkpoint of one model."""

    source: str
    """hub id or folder"""
    revision: str | None = None
    file: str | None = None
    """the only file to read: a GGUF"""
    differs: tuple[str, ...] = ()
    """keys of its config that differ from the model's on purpose, such as ``rope_theta``"""


@dataclass(frozen=True)
class QuantizationSpec:
    """Describe a quantization: a backend and the options it is called with."""

    name: str
    backend: str
    """a key of :data:`~qsae_bench.registry.backends.BACKENDS`, or the name of an installed entry point"""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    function: str | None = None
    """``package.module:function``, for the ``python`` backend only"""
    folder: str = ""
    """folder of the entry's file, where a function's module is looked for first"""
    checkpoints: Mapping[str, CheckpointSpec] = field(default_factory=dict, hash=False)
    """model -> its quantized checkpoint, for the ``checkpoint`` backend only"""
    needs_gpu: bool = False
    gpu_dtype: str = ""
    """dtype that it computes in on a GPU if its kernels refuse the reference's bfloat16; that rounding is
    then part of what is measured"""
    requires: tuple[str, ...] = ()
    """modules that must be importable"""
    stored_bits: float = 0.0
    """bits per decoder weight (of a GGUF: on disk), for ``plan``; 0: as many as the reference's"""
    default: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether this is the unquantized model."""
        return self.name == REFERENCE


@dataclass(frozen=True)
class CorpusSpec:
    """Describe where token sequences come from and how many a cell is measured on."""

    name: str
    kind: str
    sequence_length: int
    tokens: int
    """predicted tokens per cell, before any extension"""
    max_tokens: int
    batch_size: int
    """sequences a forward pass; part of the experiment, see docs/metrics.md"""
    seed: int = 0
    split: str = "heldout"
    path: str | None = None
    """path of the text, for the kind ``textfile`` only"""
    packing: str = "documents"
    """``documents``: a sequence is BOS + consecutive tokens of one document. ``concatenated``: documents
    with a BOS each, joined and cut into sequences without regard to where they end (the study's packing)"""
    sequences_per_document: int = 2
    """sequences that are taken of one document at most, spread over it; of a text that is one document, the
    size of a piece that counts as one. A concatenated corpus takes all"""
    every_position: bool = False
    """count special tokens, BOS among them, in every metric (as the study does)"""
    chat: bool = False
    """frame each sequence as a user's turn with the tokenizer's own chat template"""

    @property
    def is_capped(self) -> bool:
        """Whether it has documents of which at most ``sequences_per_document`` sequences are taken."""
        return self.packing == "documents" and self.kind != "random"


@dataclass(frozen=True)
class Selection:
    """Hold what the command line asks to measure; empty values mean the default."""

    models: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    layers: str = ""
    """``all``, ``every`` or numbers, see :meth:`ModelSpec.with_layers`"""
    sae_width: str = ""
    sae_l0: str = ""
    keyword: str = ""
    """pytest's -k expression: a model or quantization that it names in full is part of the selection"""
    synthetic: bool = False
    """use random weights of the real architecture"""
    corpus: str = ""
    """corpus instead of each model's own; ``textfile:PATH`` for one's own text"""
    protocol: str = ""
    tokens: int = 0
    """predicted tokens per cell"""
    max_tokens: int = 0
    """limit to which a cell is extended while a gate is undecided; 0: no extension if ``tokens`` is named,
    else the corpus's own limit"""
    sequence_length: int = 0
    sequences_per_document: int = 0
    batch_size: int = 0


@dataclass(frozen=True)
class Cell:
    """Identify what is measured: one model at one quantization."""

    model: ModelSpec
    quantization: QuantizationSpec

    @property
    def id(self) -> str:
        """The cell's part of a test id."""
        return f"{self.model.name}-{self.quantization.name}"

    @property
    def is_reference(self) -> bool:
        """Whether this is the model's reference cell."""
        return self.quantization.is_reference

    @property
    def checkpoint(self) -> CheckpointSpec | None:
        """The quantized checkpoint that is loaded instead of the model's own, if there is one."""
        return self.quantization.checkpoints.get(self.model.name)

    @property
    def published(self) -> ModelSpec:
        """The model with the source and revision to load: its quantized checkpoint's, or its own."""
        found = self.checkpoint
        if found is None:
            return self.model
        return replace(self.model, source=found.source, revision=found.revision)


def _joined(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def source_path(model: ModelSpec) -> str:
    """Return what ``from_pretrained`` takes: a folder, which must exist, or a hub id."""
    folder = local_folder(model.source)
    if folder is not None and not folder.is_dir():
        raise QsaeError(f"model {model.name!r}: no such folder: {folder}")
    return str(folder or model.source)


def local_folder(source: str) -> Path | None:
    """Return the folder that ``source`` names, or None when it is a hub id."""
    if source.startswith(PACKAGE_SCHEME):
        return Path(__file__).parents[1] / source.removeprefix(PACKAGE_SCHEME)
    if source.startswith((".", "/", "~")):
        return Path(source).expanduser()
    return None
