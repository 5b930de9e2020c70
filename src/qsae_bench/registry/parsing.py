"""Build specs from the tables of a registry file; each refusal names the file, the table and the key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar, get_type_hints

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.backends import BACKENDS, registered_backends
from qsae_bench.registry.sae_spec import Bounds, SaeSpec, is_residual_after
from qsae_bench.registry.specs import (
    CORPUS_KINDS,
    PACKINGS,
    CheckpointSpec,
    CorpusSpec,
    ModelSpec,
    QuantizationSpec,
)
from qsae_bench.registry.toml import quoted_key, what_is_wrong

AnySpec = TypeVar("AnySpec", ModelSpec, QuantizationSpec, CorpusSpec, SaeSpec, CheckpointSpec)

RESERVED_NAMES = ("defaults", "schema")
"""names that thresholds.toml uses for something else in the place of a model's name"""

TEMPLATE_FIELDS = ("layer", "next_layer", "width", "l0")

FUNCTION = re.compile(r"[\w.]+:\w+")

ARCHITECTURE = {
    "model_type": str, "tie_word_embeddings": bool, "vocab_size": int, "num_attention_heads": int,
}  # fmt: skip
"""values that ``plan`` needs of an entry that has an architecture at all"""

ARCHITECTURE_SIZES = (
    "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip

MOST_LAYERS = 1000
"""bound of a range of layers, which is written out as a tuple; no decoder has more layers"""

Parser = Callable[[str, dict[str, Any], str, Path], Any]
"""builds a spec from an entry's name, its table, where it stands (for messages) and the folder of its file

It raises QsaeError for an unknown key, a wrong type, or values that contradict each other.
"""


def parse_model(name: str, entry: dict[str, Any], where: str, folder: Path) -> ModelSpec:
    """Build a model from its table; see :data:`Parser`."""
    if name in RESERVED_NAMES:
        raise QsaeError(f"{where}: the name {name!r} has another meaning in thresholds.toml")
    entry = dict(entry)
    for key in ("sae", "sae_every"):
        if isinstance(sae := entry.get(key), dict):
            entry[key] = _sae(sae, f"{where}.{key}", folder)
    entry = _with_bounds(_resolve_relative(entry, "source", folder), "reference_bounds", where)
    spec = _build(ModelSpec, _with_name(name, entry, where), where)
    if not spec.layers:
        raise QsaeError(f"{where}: layers [] must lie in 0..{spec.n_layers - 1}")
    if without_sae := set(spec.layers) - set(spec.sae.layers or spec.layers):
        raise QsaeError(f"{where}: no SAE for layers {sorted(without_sae)}: sae.layers lacks them")
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
    for key in ARCHITECTURE_SIZES:
        if key in architecture and (type(architecture[key]) is not int or architecture[key] < 1):
            raise QsaeError(f"{where}: architecture.{key} must be an int of at least 1")


def _sae(entry: dict[str, Any], where: str, folder: Path) -> SaeSpec:
    entry = _with_bounds(_resolve_relative(dict(entry), "folder", folder), "expected_l0", where)
    if isinstance(layers := entry.get("layers"), dict):
        # a depth profile: { from = 0, to = 47 } rather than 48 numbers
        if (
            set(layers) != {"from", "to"}
            or any(type(v) is not int for v in layers.values())
            or not 0 <= layers["from"] <= layers["to"] < MOST_LAYERS
        ):
            raise QsaeError(f"{where}: layers must be a list of int, or {{ from = 0, to = 47 }}")
        entry["layers"] = list(range(layers["from"], layers["to"] + 1))
    spec = _build(SaeSpec, entry, where)
    if (spec.release is None) == (spec.folder is None):
        raise QsaeError(f"{where}: name either a release or a folder")
    if spec.release is not None and spec.id_template is None:
        raise QsaeError(f"{where}: a release needs id_template")
    _check_templates(spec, where)
    if not is_residual_after(spec.hook_name(0), 0):
        raise QsaeError(
            f"{where}: hook {spec.hook!r}: SAEs are read on the residual stream after their block alone, "
            "'blocks.{layer}.hook_resid_post' or 'blocks.{next_layer}.hook_resid_pre'"
        )
    return spec


def parse_quantization(name: str, entry: dict[str, Any], where: str, folder: Path) -> QuantizationSpec:
    """Build a quantization from its table; see :data:`Parser`."""
    if "folder" in entry:
        raise QsaeError(f"{where}: unknown key 'folder': it is the folder of this file")
    entry = {"folder": str(folder.resolve()), **entry}
    if isinstance(checkpoints := entry.get("checkpoints"), dict):
        entry["checkpoints"] = {
            model: _checkpoint(value, f"{where}.checkpoints.{quoted_key(model)}", folder)
            for model, value in checkpoints.items()
        }
    spec = _build(QuantizationSpec, _with_name(name, entry, where), where)
    if spec.is_reference and spec.backend != "none":
        raise QsaeError(f'{where}: the unquantized model can\'t be replaced: backend must be "none"')
    if spec.backend not in BACKENDS and spec.backend not in (registered := registered_backends()):
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


def _checkpoint(value: Any, where: str, folder: Path) -> CheckpointSpec:
    """Build a checkpoint from ``"org/name"``, or from a table with source, revision, file and differs."""
    entry = {"source": value} if isinstance(value, str) else value
    if not isinstance(entry, dict):
        raise QsaeError(f'{where}: expected "org/name", or {{ source = "…", file = "….gguf" }}')
    return _build(CheckpointSpec, _resolve_relative(entry, "source", folder), where)


def parse_corpus(name: str, entry: dict[str, Any], where: str, folder: Path) -> CorpusSpec:
    """Build a corpus from its table; see :data:`Parser`."""
    spec = _build(CorpusSpec, _with_name(name, _resolve_relative(entry, "path", folder), where), where)
    for key, value, known in (("kind", spec.kind, CORPUS_KINDS), ("packing", spec.packing, PACKINGS)):
        if value not in known:
            raise QsaeError(f"{where}: unknown {key} {value!r}{did_you_mean(value, known)}")
    if (spec.kind == "textfile") != (spec.path is not None):
        raise QsaeError(f'{where}: kind "textfile", and only it, needs a path')
    if spec.chat and spec.packing != "documents":
        raise QsaeError(f'{where}: chat = true frames single documents: packing must be "documents"')
    if spec.sequence_length < 2 or spec.tokens < 1 or spec.batch_size < 1:
        raise QsaeError(f"{where}: sequence_length ≥ 2, tokens ≥ 1 and batch_size ≥ 1 are needed")
    if spec.sequences_per_document < 1:
        raise QsaeError(
            f"{where}: sequences_per_document {spec.sequences_per_document}: at least 1 is needed"
        )
    if spec.max_tokens < spec.tokens:
        raise QsaeError(f"{where}: max_tokens {spec.max_tokens} is below tokens {spec.tokens}")
    return spec


def _check_templates(sae: SaeSpec, where: str) -> None:
    for key in ("release", "id_template", "hook"):
        template = getattr(sae, key) or ""
        try:
            fields_used = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except ValueError:
            fields_used = [("", "", "")]
        if any(name not in TEMPLATE_FIELDS or form or kind for name, form, kind in fields_used):
            raise QsaeError(
                f"{where}: {key} {template!r} may have {{layer}}, {{next_layer}}, {{width}} and {{l0}} only"
            )


def _with_name(name: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Add the name, which is its table's and can't be given a second time."""
    if "name" in entry:
        raise QsaeError(f"{where}: unknown key 'name': the name of the table is the entry's name")
    return {"name": name} | entry


def _resolve_relative(entry: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    """Make a path that starts with '.' relative to the file that names it, not to the working directory."""
    value = entry.get(key)
    if isinstance(value, str) and value.startswith("."):
        return entry | {key: str((folder / value).resolve())}
    return entry


def _with_bounds(entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Build the closed ranges of a table of ``[min, max]``."""
    if not isinstance(ranges := entry.get(key), dict):
        return entry
    found = {}
    for name, value in ranges.items():
        try:
            low, high = (float(number) for number in value if type(number) in (int, float))
            if not low <= high or len(value) != 2:
                raise ValueError
        except (TypeError, ValueError, OverflowError):  # an integer may lie beyond any float
            raise QsaeError(f"{where}.{key}.{quoted_key(name)}: expected [min, max]") from None
        found[name] = Bounds(low, high)
    return entry | {key: found}


def _build(kind: type[AnySpec], entry: Mapping[str, Any], where: str) -> AnySpec:
    """Check keys and types of one table against the dataclass, and build it."""
    from pydantic import ValidationError

    checker = _checker(kind)  # type: ignore[arg-type]  # mypy takes frozen dataclasses for unhashable
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    try:
        found = checker.model_validate(values)
    except ValidationError as error:
        raise QsaeError(what_is_wrong(error, where, checker.model_fields.keys() - {"name"})) from None
    return kind(**{key: getattr(found, key) for key in found.model_fields_set})


@cache
def _checker(kind: Any) -> Any:
    """Return a pydantic model of the dataclass's fields: the dataclasses themselves need no pydantic."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    definitions: dict[str, Any] = {
        name: (hint, ... if name in needed else None) for name, hint in hints.items()
    }
    return create_model(kind.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **definitions)


PARSERS: Mapping[str, Parser] = {
    "models": parse_model, "quantizations": parse_quantization, "corpora": parse_corpus,
}  # fmt: skip
"""section of a registry file -> the parser of its entries"""
