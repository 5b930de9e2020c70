"""Models, quantizations and corpora as TOML, read into frozen specs; user files layer over ours.

An entry in a later file replaces the one of that name whole: half-merged entries are hard to read
back. Unknown keys, wrong types and names that clash with test ids are refused with the file and key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.specs import (
    BACKENDS,
    CORPUS_KINDS,
    REFERENCE,
    Bounds,
    Cell,
    CorpusSpec,
    ModelSpec,
    QuantizationSpec,
    SaeSpec,
)

NAME = re.compile(r"[a-z0-9_.]+")
"""No hyphen: it separates model, quantization and layer in test ids."""

RESERVED = ("defaults", "schema")
"""thresholds.toml gives these another meaning where a model's name stands"""

FUNCTION = re.compile(r"[\w.]+:\w+")

SECTIONS = ("models", "quantizations", "corpora")
BUILT_IN = tuple(Path(__file__).with_name(f"{section}.toml") for section in SECTIONS)

Spec = TypeVar("Spec", ModelSpec, QuantizationSpec, CorpusSpec, SaeSpec)


@dataclass(frozen=True)
class Registry:
    """Everything known by name, in file order."""

    models: Mapping[str, ModelSpec]
    quantizations: Mapping[str, QuantizationSpec]
    corpora: Mapping[str, CorpusSpec]

    def model(self, name: str) -> ModelSpec:
        return _named(self.models, name, "model")

    def quantization(self, name: str) -> QuantizationSpec:
        return _named(self.quantizations, name, "quantization")

    def corpus(self, name: str) -> CorpusSpec:
        return _named(self.corpora, name, "corpus")

    def reference_of(self, cell: Cell) -> Cell:
        return Cell(cell.model, self.quantizations[REFERENCE])

    def select(self, models: Iterable[str] = (), quantizations: Iterable[str] = ()) -> tuple[Cell, ...]:
        """Cells of the named models and quantizations (the defaults where none is named).

        A model's reference comes first among its cells.
        """
        chosen_models = [self.model(n) for n in dict.fromkeys(models)] or [
            m for m in self.models.values() if m.default
        ]
        chosen = [self.quantization(n) for n in dict.fromkeys(quantizations)] or [
            q for q in self.quantizations.values() if q.default
        ]
        chosen.sort(key=lambda q: not q.is_reference)
        return tuple(Cell(m, q) for m in chosen_models for q in chosen)


def load_registry(extra: Iterable[Path] = ()) -> Registry:
    """Read the built-in entries and layer ``extra`` files over them, in order.

    Raises:
        QsaeError: a file can't be read, or an entry has an unknown key or a wrong type.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    written: dict[str, str] = {}  # model -> where its entry stands, for what is checked last
    readers = {"models": _model, "quantizations": _quantization, "corpora": _corpus}
    for path in (*BUILT_IN, *extra):
        for section, entries in read_toml(path).items():
            if section not in merged:
                raise QsaeError(
                    f"{path}: unknown table [{shown(section)}]{did_you_mean(section, SECTIONS)}"
                )
            if not isinstance(entries, dict):
                raise QsaeError(f"{path}: [{section}] must be a table of entries")
            for name, entry in entries.items():
                where = f"{path}: [{section}.{shown(name)}]"
                if not NAME.fullmatch(name):
                    raise QsaeError(
                        f"{where}: a name has only a-z, 0-9, '_' and '.' (hyphens separate test ids)"
                    )
                if not isinstance(entry, dict):
                    raise QsaeError(f"{where} must be a table")
                merged[section][name] = readers[section](name, entry, where, path.parent)
                if section == "models":
                    written[name] = where
    registry = Registry(**merged)
    for model in registry.models.values():
        if model.corpus not in registry.corpora:
            known = did_you_mean(model.corpus, registry.corpora)
            raise QsaeError(f"{written[model.name]}: unknown corpus {model.corpus!r}{known}")
    return registry


def shown(key: str) -> str:
    """A TOML key as a message shows it: quoted where it would break the line or the path."""
    return key if re.fullmatch(r"[\w.-]+", key) else repr(key)


def read_toml(path: Path) -> dict[str, Any]:
    """The parsed file, or one line saying why it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QsaeError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise QsaeError(f"{path}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # also tomllib's own: a giant integer, deep nesting
        raise QsaeError(f"{path}: not valid TOML: {error}") from None


def _named(entries: Mapping[str, Any], name: str, what: str) -> Any:
    try:
        return entries[name]
    except KeyError:
        raise QsaeError(f"unknown {what} {name!r}{did_you_mean(name, entries)}") from None


def _model(name: str, entry: dict[str, Any], where: str, folder: Path) -> ModelSpec:
    if name in RESERVED:
        raise QsaeError(f"{where}: the name {name!r} has another meaning in thresholds.toml")
    entry = dict(entry)
    if isinstance(sae := entry.get("sae"), dict):
        entry["sae"] = _build(SaeSpec, _anchored(sae, "folder", folder), f"{where}.sae")
        if (entry["sae"].release is None) == (entry["sae"].folder is None):
            raise QsaeError(f"{where}.sae: name either a release or a folder")
        if entry["sae"].release is not None and entry["sae"].id_template is None:
            raise QsaeError(f"{where}.sae: a release needs id_template")
        _check_id_template(entry["sae"], f"{where}.sae")
    if isinstance(bounds := entry.get("reference_bounds"), dict):
        entry["reference_bounds"] = {
            key: _bounds(value, f"{where}.reference_bounds.{shown(key)}") for key, value in bounds.items()
        }
    spec = _build(ModelSpec, _named_entry(name, _anchored(entry, "source", folder), where), where)
    outside = [layer for layer in spec.layers if not 0 <= layer < spec.n_layers]
    if outside or not spec.layers:
        raise QsaeError(f"{where}: layers {list(spec.layers)} must lie in 0..{spec.n_layers - 1}")
    if len(set(spec.layers)) < len(spec.layers):
        raise QsaeError(f"{where}: layers {list(spec.layers)} names a layer twice")
    if spec.sae.d_in != spec.d_model:
        raise QsaeError(
            f"{where}: the SAE's d_in {spec.sae.d_in} differs from the model's width {spec.d_model}: "
            "these SAEs were trained on another model"
        )
    return spec


def _quantization(name: str, entry: dict[str, Any], where: str, folder: Path) -> QuantizationSpec:
    spec = _build(QuantizationSpec, _named_entry(name, entry, where), where)
    if spec.is_reference and spec.backend != "none":
        raise QsaeError(f'{where}: the unquantized model can\'t be replaced: backend must be "none"')
    if spec.backend not in BACKENDS:
        raise QsaeError(f"{where}: unknown backend {spec.backend!r}{did_you_mean(spec.backend, BACKENDS)}")
    if (spec.backend == "python") != (spec.function is not None) or (
        spec.function is not None and not FUNCTION.fullmatch(spec.function)
    ):
        raise QsaeError(f'{where}: backend "python", and only it, needs function = "module:name"')
    return spec


def _corpus(name: str, entry: dict[str, Any], where: str, folder: Path) -> CorpusSpec:
    spec = _build(CorpusSpec, _named_entry(name, entry, where), where)
    if spec.kind not in CORPUS_KINDS:
        raise QsaeError(f"{where}: unknown kind {spec.kind!r}{did_you_mean(spec.kind, CORPUS_KINDS)}")
    if spec.sequence_length < 2 or spec.tokens < 1 or spec.batch_size < 1:
        raise QsaeError(f"{where}: sequence_length ≥ 2, tokens ≥ 1 and batch_size ≥ 1 are needed")
    if spec.max_tokens < spec.tokens:
        raise QsaeError(f"{where}: max_tokens {spec.max_tokens} is below tokens {spec.tokens}")
    return spec


def _named_entry(name: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The entry with its name, which is its table's and can't be given twice."""
    if "name" in entry:
        raise QsaeError(f"{where}: unknown key 'name': the table's own name is it")
    return {"name": name} | entry


def _check_id_template(sae: SaeSpec, where: str) -> None:
    try:
        sae.sae_id(0)
    except (ValueError, LookupError, AttributeError):
        raise QsaeError(
            f"{where}: id_template {sae.id_template!r} may have {{layer}}, {{width}} and {{l0}} only"
        ) from None


def _anchored(entry: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    """A path that starts with '.' is relative to the file that names it, not to where we run."""
    value = entry.get(key)
    if isinstance(value, str) and value.startswith("."):
        return entry | {key: str((folder / value).resolve())}
    return entry


def _bounds(value: Any, where: str) -> Bounds:
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 2 or not value[0] <= value[1]:
        raise QsaeError(f"{where}: expected [min, max]")
    try:
        return Bounds(float(value[0]), float(value[1]))
    except OverflowError:
        raise QsaeError(f"{where}: expected [min, max], found an integer beyond any float") from None


_ACCEPTS: dict[Any, tuple[type, ...]] = {
    str: (str,), int: (int,), float: (int, float), bool: (bool,), SaeSpec: (SaeSpec,),
    str | None: (str,), tuple[int, ...]: (list,), tuple[str, ...]: (list,),
}  # fmt: skip


def _build(kind: type[Spec], entry: Mapping[str, Any], where: str) -> Spec:
    """Check keys and types of one table against the dataclass, then build it."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in known:
            raise QsaeError(f"{where}: unknown key {key!r}{did_you_mean(key, set(known) - {'name'})}")
        accepted = _ACCEPTS.get(hints[key], (dict,))
        if type(value) not in accepted:
            names = " or ".join(t.__name__ for t in accepted)
            raise QsaeError(f"{where}: {key} must be {names}, not {type(value).__name__}")
        if isinstance(value, list):
            item = int if hints[key] == tuple[int, ...] else str
            if any(type(v) is not item for v in value):
                raise QsaeError(f"{where}: {key} must be a list of {item.__name__}")
            value = tuple(value)
        values[key] = value
    missing = [
        name for name, f in known.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]  # fmt: skip
    if missing:
        raise QsaeError(f"{where}: missing {', '.join(missing)}")
    return kind(**values)
