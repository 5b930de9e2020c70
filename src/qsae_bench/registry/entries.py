"""Hold the registry: models, quantizations and corpora by name, read from TOML files.

A user's files are layered over the built-in ones. An entry in a later file replaces the one of that name
whole: half-merged entries are hard to read back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.parsing import PARSERS
from qsae_bench.registry.specs import REFERENCE, Cell, CorpusSpec, ModelSpec, QuantizationSpec, Selection
from qsae_bench.registry.toml import quoted_key, read_toml

NAME = re.compile(r"[a-z0-9_.]+")
"""name of an entry; no hyphen, which separates model, quantization and layer in test ids"""

DEFAULT_SELECTION = Selection()

STUDY = "study"
"""the protocol of the study that this project generalises: its packing, its masks, its definitions"""
PROTOCOLS = (STUDY,)
MOST_STUDY_TOKENS = 51_100
"""the study's 100 sequences of 511 predicted tokens; a corpus with fewer keeps its own number"""

TEXTFILE = CorpusSpec("textfile", "textfile", 512, 130_816, 511_000, 4)
"""a text file of the user's, measured as pile10k is"""

BUILT_IN = tuple(
    Path(__file__).with_name(name)
    for name in (
        "tiny.toml", "gemma3.toml", "gemma3_it.toml", "other_models.toml",
        "quantizations.toml", "corpora.toml",
    )
)  # fmt: skip

Entry = TypeVar("Entry", ModelSpec, QuantizationSpec)


@dataclass(frozen=True)
class Registry:
    """Hold every model, quantization and corpus by name, in the order of the files."""

    models: Mapping[str, ModelSpec]
    quantizations: Mapping[str, QuantizationSpec]
    corpora: Mapping[str, CorpusSpec]

    def model(self, name: str) -> ModelSpec:
        """Return the model of this name; a QsaeError where there is none names the nearest one."""
        return _named(self.models, name, "model")

    def quantization(self, name: str) -> QuantizationSpec:
        """Return the quantization of this name; raises as :meth:`model`."""
        return _named(self.quantizations, name, "quantization")

    def corpus(self, name: str) -> CorpusSpec:
        """Return a corpus of the registry, or for ``textfile:PATH`` one of the user's text."""
        kind, _, path = name.partition(":")
        if kind == "textfile" and path:
            return replace(TEXTFILE, path=path)
        if kind == "textfile":
            raise QsaeError(
                "corpus textfile needs its text: textfile:PATH (.txt, .jsonl, a folder of .txt)"
            )
        return _named(self.corpora, name, "corpus")

    def corpus_of(self, model: ModelSpec, selection: Selection) -> CorpusSpec:
        """Return what the model's cells are measured on: its own corpus, as the selection changes it.

        Raises:
            QsaeError: there is no such corpus, or its length, batch size or number of tokens is impossible.
        """
        spec = self.corpus(selection.corpus or model.corpus)
        if selection.protocol == STUDY:
            spec = replace(
                spec,
                name=f"{spec.name} ({STUDY})",
                packing="concatenated",
                every_position=True,
                chat=False,
                tokens=min(spec.tokens, MOST_STUDY_TOKENS),
            )
        if selection.synthetic:
            spec = replace(spec, name="random", kind="random", path=None, chat=False)
        length = selection.sequence_length or spec.sequence_length
        tokens = selection.tokens or spec.tokens
        fixed = selection.tokens or selection.protocol == STUDY  # then a cell is not extended
        most = selection.max_tokens or (tokens if fixed else spec.max_tokens)
        if most < tokens:
            raise QsaeError(f"--max-tokens {most}: fewer than the {tokens} tokens that a cell starts with")
        spec = replace(
            spec, sequence_length=length, tokens=tokens, max_tokens=most,
            batch_size=selection.batch_size or spec.batch_size,
            sequences_per_document=selection.sequences_per_document or spec.sequences_per_document,
        )  # fmt: skip
        if length < 2 or min(tokens, spec.batch_size, spec.sequences_per_document) < 1:
            raise QsaeError(
                "--sequence-length ≥ 2, --tokens ≥ 1, --batch-size ≥ 1 and --sequences-per-document ≥ 1 "
                "are needed"
            )
        return spec

    def reference_of(self, cell: Cell) -> Cell:
        """Return the unquantized cell of the same model."""
        return Cell(cell.model, self.quantizations[REFERENCE])

    def select(self, selection: Selection = DEFAULT_SELECTION) -> tuple[Cell, ...]:
        """Return the cells of the named models and quantizations (of the defaults if none is named).

        A model's reference comes first among its cells. A model that was not named and has no such layer,
        width or l0 is left out.

        Raises:
            QsaeError: there is no such model, quantization, layer, width or l0.
        """
        quantizations = _chosen(
            self.quantizations, selection.quantizations, selection.keyword, "quantization"
        )
        quantizations.sort(key=lambda q: not q.is_reference)
        models, refusal = [], None
        for model in _chosen(self.models, selection.models, selection.keyword, "model"):
            try:
                models.append(self._as_selected(model, selection))
            except QsaeError as error:
                if selection.models:
                    raise
                refusal = error
        if not models and refusal:
            raise refusal
        return tuple(Cell(m, q) for m in models for q in quantizations)

    def _as_selected(self, model: ModelSpec, selection: Selection) -> ModelSpec:
        tapped = model.with_layers(selection.layers, selection.sae_width, selection.sae_l0)
        if selection.synthetic and not model.architecture:
            raise QsaeError(
                f"model {model.name!r}: --synthetic needs its architecture in the registry; "
                f"models that have one: {', '.join(n for n, m in self.models.items() if m.architecture)}"
            )
        bounds = dict(tapped.reference_bounds)
        if selection.protocol == STUDY:
            # BOS counts there, and its norm alone can put a sane SAE's numbers anywhere
            bounds = {key: bound for key, bound in bounds.items() if key not in ("fvu", "l0")}
        return replace(tapped, synthetic=selection.synthetic, reference_bounds=bounds)


def load_registry(extra: Iterable[Path] = ()) -> Registry:
    """Read the built-in entries and layer ``extra`` files over them, in order.

    Raises:
        QsaeError: a file can't be read, or an entry is refused; see :mod:`qsae_bench.registry.parsing`.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in PARSERS}
    locations: dict[str, str] = {}  # model -> where its entry stands, for what is checked last
    for entries in (*_built_in_entries(), *(_entries_of(path) for path in extra)):
        for section, name, where, spec in entries:
            merged[section][name] = spec
            if section == "models":
                locations[name] = where
    registry = Registry(**merged)
    for model in registry.models.values():
        try:
            registry.corpus(model.corpus)
        except QsaeError as error:
            raise QsaeError(f"{locations[model.name]}: {error}") from None
    for quantization in registry.quantizations.values():
        for name in quantization.checkpoints:
            if name not in registry.models:
                hint = did_you_mean(name, registry.models)
                raise QsaeError(
                    f"quantization {quantization.name!r}: checkpoints names unknown model {name!r}{hint}"
                )
    return registry


FileEntry = tuple[str, str, str, Any]
"""section, name, where the entry stands (for messages), and the spec built from it"""


@cache
def _built_in_entries() -> tuple[tuple[FileEntry, ...], ...]:
    """Parse the files of this package, once a process."""
    return tuple(_entries_of(path) for path in BUILT_IN)


def _entries_of(path: Path) -> tuple[FileEntry, ...]:
    found: list[FileEntry] = []
    for section, entries in read_toml(path).items():
        if section not in PARSERS:
            raise QsaeError(
                f"{path}: unknown table [{quoted_key(section)}]{did_you_mean(section, PARSERS)}"
            )
        if not isinstance(entries, dict):
            raise QsaeError(f"{path}: [{section}] must be a table of entries")
        for name, entry in entries.items():
            where = f"{path}: [{section}.{quoted_key(name)}]"
            if not NAME.fullmatch(name):
                raise QsaeError(
                    f"{where}: a name has only a-z, 0-9, '_' and '.' (hyphens separate test ids)"
                )
            if not isinstance(entry, dict):
                raise QsaeError(f"{where} must be a table")
            found.append((section, name, where, PARSERS[section](name, entry, where, path.parent)))
    return tuple(found)


def _chosen(entries: Mapping[str, Entry], names: tuple[str, ...], keyword: str, what: str) -> list[Entry]:
    """Return the named entries; if none is named the defaults, and those that ``-k`` names in full."""
    if names:
        return [_named(entries, name, what) for name in dict.fromkeys(names)]
    words = set(re.findall(NAME, keyword.lower()))
    return [entry for name, entry in entries.items() if entry.default or name in words]


def _named(entries: Mapping[str, Any], name: str, what: str) -> Any:
    try:
        return entries[name]
    except KeyError:
        raise QsaeError(f"unknown {what} {name!r}{did_you_mean(name, entries)}") from None
