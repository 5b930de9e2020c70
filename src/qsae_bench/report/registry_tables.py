"""Print what the registry knows, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qsae_bench.registry.entries import Registry
from qsae_bench.registry.specs import Cell, CorpusSpec, ModelSpec, QuantizationSpec
from qsae_bench.report.tables import table, wrapped


def listing(registry: Registry, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the models and quantizations of the cells, and every corpus."""
    models = dict.fromkeys(cell.model for cell in cells)
    quantizations = dict.fromkeys(cell.quantization for cell in cells)
    for rows in (
        map(_model, models), map(_saes, models), map(_quantization, quantizations),
        map(_corpus, registry.corpora.values()),
    ):  # fmt: skip
        yield from (*table(rows), "")
    for what, entries in (("models", models), ("quantizations", quantizations)):
        names = ", ".join(entry.name for entry in entries if entry.default)
        yield from wrapped(f"by default: {what} {names}") if names else ()
    yield "one's own text: --corpus textfile:PATH (.txt, .jsonl, or a folder of .txt)"


def _model(model: ModelSpec) -> dict[str, Any]:
    needs = f"GPU, {model.min_gpu_gib:g} GiB" if model.needs_gpu else "CPU"
    return {
        "model": model.name, "source": model.source, "layers": model.n_layers, "width": model.d_model,
        "corpus": model.corpus, "needs": needs + (", HF_TOKEN" if model.gated else ""),
    }  # fmt: skip


def _saes(model: ModelSpec) -> dict[str, Any]:
    every = model.sae_every
    return {
        "model": model.name, "SAEs": model.sae.release or model.sae.folder,
        "tapped": _span(model.layers), "all": _span(model.sae.layers or model.layers),
        "every": f"{every.release} {_span(every.layers)}" if every else "",
        "--sae-width": ", ".join(model.sae.widths) or model.sae.width,
        "--sae-l0": ", ".join(model.sae.expected_l0),
    }  # fmt: skip


def _span(layers: tuple[int, ...]) -> str:
    """Write ``0–25`` for a whole range."""
    if len(layers) > 4 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))


def _quantization(spec: QuantizationSpec) -> dict[str, Any]:
    return {
        "quantization": spec.name, "backend": spec.backend,
        "options": ", ".join(f"{k}={v}" for k, v in spec.options.items()) or spec.function
        or (f"checkpoints of {len(spec.checkpoints)} models" if spec.checkpoints else ""),
        "needs": "GPU" if spec.needs_gpu else "",
    }  # fmt: skip


def _corpus(corpus: CorpusSpec) -> dict[str, Any]:
    return {
        "corpus": corpus.name, "kind": corpus.kind, "sequence": corpus.sequence_length,
        "tokens": f"{corpus.tokens:,}", "batch": corpus.batch_size,
        "framed": "chat template" if corpus.chat else "",
    }  # fmt: skip
