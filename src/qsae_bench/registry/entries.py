"""Models, quantizations and corpora as TOML, read into frozen specs; user files layer over ours.

An entry in a later file replaces the one of that name whole: half-merged entries are hard to read
back. Unknown keys, wrong types and names that clash with test ids are refused with the file and key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.specs import (
    BACKENDS,
    CORPUS_KINDS,
    ENTRY_POINTS,
    PACKINGS,
    REFERENCE,
    Cell,
    CheckpointSpec,
    CorpusSpec,
    ModelSpec,
    QuantizationSpec,
    SaeSpec,
    Selection,
)
from qsae_bench.registry.toml import anchored, bounds_of, build, named_entry, read_toml, shown

NAME = re.compile(r"[a-z0-9_.]+")
"""No hyphen: it separates model, quantization and layer in test ids."""

RESERVED = ("defaults", "schema")
"""thresholds.toml gives these another meaning where a model's name stands"""

TEMPLATE_PARTS = ("layer", "next_layer", "width", "l0")

FUNCTION = re.compile(r"[\w.]+:\w+")

ARCHITECTURE = {
    "model_type": str, "tie_word_embeddings": bool, "vocab_size": int, "num_attention_heads": int,
}  # fmt: skip
"""what ``plan`` can't do without, where an entry has an architecture at all"""
SIZES = (
    "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip

MOST_LAYERS = 1000
"""no decoder has more; a range is written out"""

DEFAULTS = Selection()

STUDY = "study"
"""the protocol of the study that this project generalises: its packing, its masks, its definitions"""
PROTOCOLS = (STUDY,)

TEXTFILE = CorpusSpec("textfile", "textfile", 512, 51_100, 511_000, 4)
"""a file of one's own, measured as pile10k is"""

SECTIONS = ("models", "quantizations", "corpora")
BUILT_IN = tuple(
    Path(__file__).with_name(name)
    for name in (
        "tiny.toml", "gemma3.toml", "gemma3_it.toml", "other_models.toml",
        "quantizations.toml", "corpora.toml",
    )
)  # fmt: skip


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
        """A corpus of the registry, or ``textfile:PATH`` for one's own text."""
        kind, _, path = name.partition(":")
        if kind == "textfile" and path:
            return replace(TEXTFILE, path=path)
        if kind == "textfile":
            raise QsaeError(
                "corpus textfile needs its text: textfile:PATH (.txt, .jsonl, a folder of .txt)"
            )
        return _named(self.corpora, name, "corpus")

    def corpus_of(self, model: ModelSpec, selection: Selection) -> CorpusSpec:
        """What the model's cells are measured on: its own corpus, unless the selection says otherwise.

        Raises:
            QsaeError: no such corpus, or a length, batch size or number of tokens that can't be.
        """
        spec = self.corpus(selection.corpus or model.corpus)
        if selection.protocol == STUDY:
            spec = replace(
                spec, name=f"{spec.name} ({STUDY})", packing="concatenated", every_position=True, chat=False
            )
        if selection.synthetic:
            spec = replace(spec, name="random", kind="random", path=None, chat=False)
        length = selection.sequence_length or spec.sequence_length
        tokens = selection.tokens or spec.tokens
        fixed = selection.tokens or selection.protocol == STUDY  # so many, and no more
        most = selection.max_tokens or (tokens if fixed else spec.max_tokens)
        if most < tokens:
            raise QsaeError(f"--max-tokens {most}: fewer than the {tokens} tokens that a cell starts with")
        spec = replace(
            spec, sequence_length=length, tokens=tokens, max_tokens=most,
            batch_size=selection.batch_size or spec.batch_size,
        )  # fmt: skip
        if length < 2 or tokens < 1 or spec.batch_size < 1:
            raise QsaeError("--sequence-length ≥ 2, --tokens ≥ 1 and --batch-size ≥ 1 are needed")
        return spec

    def reference_of(self, cell: Cell) -> Cell:
        return Cell(cell.model, self.quantizations[REFERENCE])

    def select(self, selection: Selection = DEFAULTS) -> tuple[Cell, ...]:
        """Cells of the named models and quantizations (the defaults where none is named).

        A model's reference comes first among its cells. A model that was not named and has no such layer,
        width or l0 is left out.

        Raises:
            QsaeError: no such model, quantization, layer, width or l0.
        """
        recipes = self._chosen(self.quantizations, self.quantization, selection.quantizations, selection)
        recipes.sort(key=lambda q: not q.is_reference)
        models, refusal = [], None
        for model in self._chosen(self.models, self.model, selection.models, selection):
            try:
                models.append(self._as_selected(model, selection))
            except QsaeError as error:
                if selection.models:
                    raise
                refusal = error
        if not models and refusal:
            raise refusal
        return tuple(Cell(m, q) for m in models for q in recipes)

    def _chosen(
        self, entries: Mapping[str, Any], named: Any, names: tuple[str, ...], selection: Selection
    ) -> list[Any]:
        if names:
            return [named(name) for name in dict.fromkeys(names)]
        words = set(re.findall(NAME, selection.keyword.lower()))
        return [entry for name, entry in entries.items() if entry.default or name in words]

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
        try:
            registry.corpus(model.corpus)
        except QsaeError as error:
            raise QsaeError(f"{written[model.name]}: {error}") from None
    for recipe in registry.quantizations.values():
        for name in recipe.checkpoints:
            if name not in registry.models:
                hint = did_you_mean(name, registry.models)
                raise QsaeError(
                    f"quantization {recipe.name!r}: checkpoints names unknown model {name!r}{hint}"
                )
    return registry


def _named(entries: Mapping[str, Any], name: str, what: str) -> Any:
    try:
        return entries[name]
    except KeyError:
        raise QsaeError(f"unknown {what} {name!r}{did_you_mean(name, entries)}") from None


def _model(name: str, entry: dict[str, Any], where: str, folder: Path) -> ModelSpec:
    if name in RESERVED:
        raise QsaeError(f"{where}: the name {name!r} has another meaning in thresholds.toml")
    entry = dict(entry)
    for key in ("sae", "sae_every"):
        if isinstance(sae := entry.get(key), dict):
            entry[key] = _sae(sae, f"{where}.{key}", folder)
    if isinstance(bounds := entry.get("reference_bounds"), dict):
        entry["reference_bounds"] = {
            key: bounds_of(value, f"{where}.reference_bounds.{shown(key)}") for key, value in bounds.items()
        }
    spec = build(ModelSpec, named_entry(name, anchored(entry, "source", folder), where), where)
    if not spec.layers:
        raise QsaeError(f"{where}: layers [] must lie in 0..{spec.n_layers - 1}")
    if strangers := set(spec.layers) - set(spec.sae.layers or spec.layers):
        raise QsaeError(f"{where}: no SAE for layers {sorted(strangers)}: sae.layers lacks them")
    for layers in (spec.layers, spec.sae.layers, spec.sae_every.layers if spec.sae_every else ()):
        if any(not 0 <= layer < spec.n_layers for layer in layers):
            raise QsaeError(f"{where}: layers {list(layers)} must lie in 0..{spec.n_layers - 1}")
        if len(set(layers)) < len(layers):
            raise QsaeError(f"{where}: layers {list(layers)} names a layer twice")
    for sae in (spec.sae, spec.sae_every):
        if sae is not None and sae.d_in != spec.d_model:
            raise QsaeError(
                f"{where}: the SAE's d_in {sae.d_in} differs from the model's width {spec.d_model}: "
                "these SAEs were trained on another model"
            )
    _check_architecture(spec.architecture, where)
    return spec


def _check_architecture(architecture: Mapping[str, Any], where: str) -> None:
    for key, kind in ARCHITECTURE.items() if architecture else ():
        if type(architecture.get(key)) is not kind:
            raise QsaeError(f"{where}: architecture needs {key}, and it must be {kind.__name__}")
    for key in SIZES:
        if key in architecture and (type(architecture[key]) is not int or architecture[key] < 1):
            raise QsaeError(f"{where}: architecture.{key} must be an int of at least 1")


def _sae(entry: dict[str, Any], where: str, folder: Path) -> SaeSpec:
    entry = dict(entry)
    if isinstance(bounds := entry.get("expected_l0"), dict):
        entry["expected_l0"] = {
            key: bounds_of(value, f"{where}.expected_l0.{shown(key)}") for key, value in bounds.items()
        }
    if isinstance(layers := entry.get("layers"), dict):
        # a depth profile: { from = 0, to = 47 } rather than 48 numbers
        if (
            set(layers) != {"from", "to"}
            or any(type(v) is not int for v in layers.values())
            or not 0 <= layers["from"] <= layers["to"] < MOST_LAYERS
        ):
            raise QsaeError(f"{where}: layers must be a list of int, or {{ from = 0, to = 47 }}")
        entry["layers"] = list(range(layers["from"], layers["to"] + 1))
    spec = build(SaeSpec, anchored(entry, "folder", folder), where)
    if (spec.release is None) == (spec.folder is None):
        raise QsaeError(f"{where}: name either a release or a folder")
    if spec.release is not None and spec.id_template is None:
        raise QsaeError(f"{where}: a release needs id_template")
    _check_templates(spec, where)
    return spec


def _quantization(name: str, entry: dict[str, Any], where: str, folder: Path) -> QuantizationSpec:
    if "folder" in entry:
        raise QsaeError(f"{where}: unknown key 'folder': it is the file's own")
    entry = {"folder": str(folder.resolve()), **entry}
    if isinstance(checkpoints := entry.get("checkpoints"), dict):
        entry["checkpoints"] = {
            model: _checkpoint(value, f"{where}.checkpoints.{shown(model)}", folder)
            for model, value in checkpoints.items()
        }
    spec = build(QuantizationSpec, named_entry(name, entry, where), where)
    if spec.is_reference and spec.backend != "none":
        raise QsaeError(f'{where}: the unquantized model can\'t be replaced: backend must be "none"')
    if spec.backend not in BACKENDS and spec.backend not in (registered := entry_points()):
        known = [*BACKENDS, *registered]
        raise QsaeError(f"{where}: unknown backend {spec.backend!r}{did_you_mean(spec.backend, known)}")
    if (spec.backend == "python") != (spec.function is not None) or (
        spec.function is not None and not FUNCTION.fullmatch(spec.function)
    ):
        raise QsaeError(f'{where}: backend "python", and only it, needs function = "module:name"')
    if spec.gpu_dtype not in ("", "float16", "bfloat16"):
        raise QsaeError(f'{where}: gpu_dtype must be "float16" or "bfloat16", not {spec.gpu_dtype!r}')
    if (spec.backend == "checkpoint") != bool(spec.checkpoints):
        raise QsaeError(
            f'{where}: backend "checkpoint", and only it, needs checkpoints = {{ MODEL = "org/name" }}'
        )
    return spec


def entry_points() -> tuple[str, ...]:
    """Backends that installed packages register."""
    from importlib import metadata

    return tuple(point.name for point in metadata.entry_points(group=ENTRY_POINTS))


def _checkpoint(value: Any, where: str, folder: Path) -> CheckpointSpec:
    """``"org/name"``, or a table with source, revision and file."""
    entry = {"source": value} if isinstance(value, str) else value
    if not isinstance(entry, dict):
        raise QsaeError(f'{where}: expected "org/name", or {{ source = "…", file = "….gguf" }}')
    return build(CheckpointSpec, anchored(entry, "source", folder), where)


def _corpus(name: str, entry: dict[str, Any], where: str, folder: Path) -> CorpusSpec:
    spec = build(CorpusSpec, named_entry(name, anchored(entry, "path", folder), where), where)
    for key, value, known in (("kind", spec.kind, CORPUS_KINDS), ("packing", spec.packing, PACKINGS)):
        if value not in known:
            raise QsaeError(f"{where}: unknown {key} {value!r}{did_you_mean(value, known)}")
    if (spec.kind == "textfile") != (spec.path is not None):
        raise QsaeError(f'{where}: kind "textfile", and only it, needs a path')
    if spec.chat and spec.packing != "documents":
        raise QsaeError(f'{where}: chat = true frames single documents: packing must be "documents"')
    if spec.sequence_length < 2 or spec.tokens < 1 or spec.batch_size < 1:
        raise QsaeError(f"{where}: sequence_length ≥ 2, tokens ≥ 1 and batch_size ≥ 1 are needed")
    if spec.max_tokens < spec.tokens:
        raise QsaeError(f"{where}: max_tokens {spec.max_tokens} is below tokens {spec.tokens}")
    return spec


def _check_templates(sae: SaeSpec, where: str) -> None:
    for key in ("release", "id_template", "hook"):
        template = getattr(sae, key) or ""
        try:
            open_parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except ValueError:
            open_parts = [("", "", "")]
        if any(name not in TEMPLATE_PARTS or form or kind for name, form, kind in open_parts):
            raise QsaeError(
                f"{where}: {key} {template!r} may have {{layer}}, {{next_layer}}, {{width}} and {{l0}} only"
            )
