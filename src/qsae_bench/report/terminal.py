"""Print a run as tables, model by model with notes below, and one cell with everything known about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from qsae_bench.gate.accepted import WORSE
from qsae_bench.gate.verdict import FAILING, worst_status
from qsae_bench.metrics import METRICS
from qsae_bench.registry.entries import STUDY
from qsae_bench.report.notes import FVU_DEFINITIONS, change, notes, relative
from qsae_bench.report.number_format import ShownColumns, cell_values, formatted, in_sequences, layer_rows
from qsae_bench.report.study import study_lines
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.accepted_record import AcceptedRecord
from qsae_bench.results.cell_facts import SHARED_DEVICE
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import CellRecord, RunDocument, Value
from qsae_bench.stats.flat_fvu import read_flat_fvu

SUMMARY_CELL: ShownColumns = {
    "perplexity": ("perplexity", ".4f"), "change %": ("perplexity_increase_pct", "+.3f±"),
    "KLD": ("kl_divergence", ".2e"), "top-1": ("top1_agreement", ".4f"),
    "bits/w": ("bits_per_weight", ".2f"), "tokens/s": ("prefill_tokens_per_second", ",.0f*"),
}  # fmt: skip
SUMMARY_LAYER: ShownColumns = {
    "FVU": ("fvu", ".5f"), "drift": ("fvu_drift", "+.5f±"), "L0": ("l0", ".1f"),
    "survival": ("feature_survival", ".3f"), "resolution": ("drift_resolution", ".3f"),
}  # fmt: skip
SUMMARY_SINKS: ShownColumns = {"sinks + ‰": ("sinks_gained", ".2f"), "sinks − ‰": ("sinks_lost", ".2f")}
SUMMARY_SPLICE: ShownColumns = {
    "splice loss": ("splice_loss", ".4f±"), "excess": ("splice_excess", "+.4f±"),
    "loss recovered": ("loss_recovered", ".4f"),
}  # fmt: skip
SUMMARY_SYNTHETIC: ShownColumns = {
    "bits/w": ("bits_per_weight", ".2f"), "prefill/s": ("prefill_tokens_per_second", ",.0f*"),
}  # fmt: skip
SUMMARY_COST: ShownColumns = {
    "load s": ("load_seconds", ".2f*"), "decode/s": ("decode_tokens_per_second", ",.0f*"),
    "SAE/s": ("sae_tokens_per_second", ",.0f*"),
    "evaluation/s": ("evaluation_tokens_per_second", ",.0f*"), "overhead": ("evaluation_overhead", ".2f"),
    "weights MB": ("weight_bytes", "MB*"), "peak MB": ("peak_memory_bytes", "MB*"),
}  # fmt: skip


PARTIAL = ("pass", "suspicious")
"""verdicts that say what they are about, where that is not all of a cell's gates"""

FEW_NAMES = 2
"""metrics that a verdict names, where it is about these alone"""


def summary_lines(document: RunDocument) -> Iterator[str]:
    """Yield the tables of a run, model by model, and a line for each reason why cells were not measured."""
    for model in dict.fromkeys(cell.model for cell in document.cells):
        cells = [cell for cell in document.cells if cell.model == model]
        if measured := [cell for cell in cells if cell.has_values]:
            yield from _model_lines(model, measured, document)
        # a cell that was asked for and then skipped by its own test has nothing to say
        others = [cell for cell in cells if cell.status in ("skipped", "oom", "error", "crashed")]
        for reason in dict.fromkeys(cell.reason for cell in others):
            same = [cell for cell in others if cell.reason == reason]
            names = ", ".join(cell.quantization for cell in same)
            yield from wrapped(f"{model}: {same[0].status} ({names}): {reason}")


def _model_lines(model: str, cells: list[CellRecord], document: RunDocument) -> Iterator[str]:
    corpus = document.corpus.get(model)
    if corpus is not None:
        kind = "random weights: no quality" if document.synthetic else "95% intervals"
        yield from wrapped(f"{model} on {corpus.name}: {size(corpus, cells)}; {kind}")
    if document.synthetic:
        yield from table(map(_synthetic_row, cells))
        return
    extended = any(cell.looks > 1 for cell in cells)
    yield from table(_cell_row(cell, extended) for cell in cells)
    yield from _saved(cells)
    reference = next((cell for cell in cells if cell.is_reference), None)
    for rows_of in (_layer_rows, partial(definition_rows, reference), _splice_rows, _cost_rows):
        if rows := [row for cell in cells for row in rows_of(cell)]:
            yield ""
            yield from table(rows)
    yield ""
    if document.protocol == STUDY:
        yield from study_lines(cells, document.published.get(model, {}))
    for note in notes(cells, document):
        yield from wrapped(f"note: {note}")


def size(corpus: CorpusRecord, cells: list[CellRecord]) -> str:
    """Say on how many tokens, sequences and documents the cells of a model were measured."""
    if all(cell.looks <= 1 for cell in cells):
        counts = in_sequences(corpus.sequences, corpus.documents, corpus.is_one_document)
        return f"{corpus.tokens:,} tokens{counts} (sequence length {corpus.sequence_length})"
    most = max(cells, key=lambda cell: cell.tokens)
    counts = in_sequences(most.sequences, most.documents, corpus.is_one_document)
    return (
        f"{corpus.tokens:,} to {most.tokens:,} tokens a cell, the most{counts} (sequence length "
        f"{corpus.sequence_length}; on more text absolute values are others: compare the changes)"
    )


def _saved(cells: list[CellRecord]) -> Iterator[str]:
    """Say how many tokens were saved by deciding early, where cells might have run on."""
    judged = [c for c in cells if not c.is_reference and c.planned_tokens and c.verdicts]
    used, planned = (sum(getattr(c, key) for c in judged) for key in ("tokens", "planned_tokens"))
    if planned > used:
        yield from wrapped(f"decided on {used:,} of at most {planned:,} tokens: {planned - used:,} saved")


def _cell_row(cell: CellRecord, extended: bool) -> dict[str, str]:
    """Return a cell's row, with its tokens if some cell of the model ran on beyond its first tokens."""
    tokens = {"tokens": f"{cell.tokens:,}"} if extended else {}
    values = cell_values(cell, SUMMARY_CELL)
    return {"quantization": cell.quantization, **tokens, **values, "verdict": verdict_word(cell)}


def _layer_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    for row, record in zip(layer_rows(cell, SUMMARY_LAYER), cell.layers.values(), strict=True):
        changed = cell.sinks is not None and (cell.sinks.gained or cell.sinks.lost)
        sinks = cell_values(cell, SUMMARY_SINKS, row["layer"]) if changed else {}
        yield row | {"flat FVU": read_flat_fvu(record.metrics) or ""} | sinks


def definition_rows(reference: CellRecord | None, cell: CellRecord) -> Iterator[dict[str, str]]:
    """Yield FVU by each definition, and its change in percent of itself."""
    for layer, record in cell.layers.items():
        row = {"quantization": cell.quantization, "layer": layer}
        for key in FVU_DEFINITIONS:
            value = record.metrics.get(key)
            text = formatted(value, ".5f")
            other = (cell.beside or reference).layers.get(layer) if reference not in (None, cell) else None
            change = relative(value, other.metrics.get(key)) if other else None
            row[key] = text if change is None else f"{text} ({100 * change:+.2f}%)"
        yield row


def _splice_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    """Yield what runs with --splice have: nats a token, and their excess over the reference's."""
    for row in layer_rows(cell, SUMMARY_SPLICE):
        if "splice_loss" in cell.layers[row["layer"]].metrics:
            yield row


def _synthetic_row(cell: CellRecord) -> dict[str, str]:
    """Return what is real in runs with --synthetic."""
    costs = next(_cost_rows(cell), {})
    verdict = {"verdict": verdict_word(cell) if cell.verdicts else "n/a"}
    return {"quantization": cell.quantization, **cell_values(cell, SUMMARY_SYNTHETIC), **costs, **verdict}


def _cost_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    """Yield speed (tokens a second) and memory, where they were taken."""
    if "load_seconds" in cell.metrics:
        yield {"quantization": cell.quantization, **cell_values(cell, SUMMARY_COST)}


def verdict_word(cell: CellRecord) -> str:
    """Return the gravest verdict of a cell, with what was judged if that is not everything.

    Where nothing was judged it is a dash.
    """
    found = {verdict.status for verdict in cell.verdicts} | ({WORSE} if cell.is_worse else set())
    if cell.reason and not found & FAILING:
        return "invalid"
    word = worst_status(found) or "–"
    return f"{word} ({_judged_part(cell)})" if word in PARTIAL and cell.unjudged else word


def _judged_part(cell: CellRecord) -> str:
    """Say which gates were judged: by name where they are few, and judged wherever the cell has them."""
    judged = list(dict.fromkeys(verdict.metric for verdict in cell.verdicts))
    if len(judged) <= FEW_NAMES and not {gate.metric for gate in cell.unjudged}.intersection(judged):
        return f"{', '.join(judged)} only"
    return f"{len(cell.verdicts)} of {len(cell.verdicts) + len(cell.unjudged)} gates"


# -- one cell -------------------------------------------------------------------------------------


def cell_lines(cell: CellRecord) -> Iterator[str]:
    """Yield verdicts, every metric with its interval and unit, stability, and the worst features."""
    reason = f": {cell.reason}" if cell.reason else ""
    yield from wrapped(f"{cell.model}-{cell.quantization}: {cell.status}{reason}")
    if cell.verdicts:
        yield from _spaced(
            {
                "verdict": v.status, "metric": v.metric, "layer": "" if v.layer is None else v.layer,
                "threshold": "–" if v.bound is None else v.limit,
                "rests on": v.source or v.reason,
            }
            for v in cell.verdicts
        )  # fmt: skip
    if cell.accepted is not None:
        yield from _accepted_lines(cell.accepted)
    yield from _spaced(_metric_rows(cell.metrics, ""))
    for layer, record in cell.layers.items():
        yield from _spaced(_metric_rows(record.metrics, layer))
        if record.worst_features and not cell.is_reference:
            yield from wrapped(
                f"layer {layer}: features that lost most (weight × (1 − r)), index as in the SAE"
            )
            yield from _spaced(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in feature.model_dump().items()}
                for feature in record.worst_features
            )
    if cell.shared_device:
        yield from wrapped(f"load and speeds: {SHARED_DEVICE}")
    for warning in cell.warnings:
        yield from wrapped(warning)
    if cell.stability:
        yield "stability: headline metrics on the first so many tokens"
        yield from _spaced(
            {"tokens": f"{part.tokens:,}"}
            | {key: _interval(value) for key, value in part.metrics.items()}
            | {
                f"{key} {layer}": _interval(value)
                for layer, record in part.layers.items()
                for key, value in record.metrics.items()
            }
            for part in cell.stability
        )


def _accepted_lines(found: AcceptedRecord) -> Iterator[str]:
    """Say how a cell compares with the last accepted run of it."""
    if found.not_compared:
        yield from wrapped(f"not compared: {found.not_compared}")
        return
    against = f"run {found.run} of {found.started[:10]}, the last accepted one"
    if not found.worse:
        same = f"{found.tests} metrics tested" if found.tests else "the rows are the same"
        yield from wrapped(f"not worse than {against}: {same}, on {found.tokens:,} tokens")
        return
    yield from wrapped(f"worse than {against}, on {found.tokens:,} tokens; {found.tests} metrics tested")
    yield from _spaced(
        {
            "metric": d.metric, "layer": "" if d.layer is None else d.layer,
            "accepted": f"{d.accepted:.4g}", "now": f"{d.now:.4g}",
            "change": formatted(change(d), "+.3g±"), "Holm p": f"{d.p:.2g}",
        }
        for d in found.worse
    )  # fmt: skip
    yield from wrapped(f"moved: {found.moved}")


def _metric_rows(metrics: dict[str, Value], layer: str) -> Iterator[dict[str, object]]:
    for key, value in metrics.items():
        bounds = value.low is not None and value.high is not None
        yield {
            "metric": key, **({"layer": layer} if layer else {}), "value": formatted(value, ".6g"),
            "low": f"{value.low:.6g}" if bounds else "", "high": f"{value.high:.6g}" if bounds else "",
            "unit": METRICS[key].unit if key in METRICS else "",
        }  # fmt: skip


def _interval(value: Value) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "–"
    return f"{value.value:.4g} ± {(value.high - value.low) / 2:.2g}"


def _spaced(rows: Iterable[Mapping[str, object]]) -> list[str]:
    return [*table(rows), ""]
