"""The terminal summary: per model, one row a quantization and one a layer, then what to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from qsae_bench.gate.verdict import FAILING, worst_status
from qsae_bench.metrics.base import Condition
from qsae_bench.metrics.residual import read_resolution
from qsae_bench.registry.entries import STUDY
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report.notes import FVU_DEFINITIONS, notes, relative
from qsae_bench.report.study import study_lines
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.document import CellRecord, CorpusRecord, RunDocument, Value
from qsae_bench.results.pareto import not_own

MARKS: Mapping[Condition, str] = {"shared": "†", "simulated": "*"}
"""why a cost is not the quantization's own -> the mark behind it, which a note explains"""


def summary_lines(document: RunDocument) -> Iterator[str]:
    """Tables of a run, model by model, and one line for each reason why a cell was not measured."""
    for model in dict.fromkeys(cell.model for cell in document.cells):
        cells = [cell for cell in document.cells if cell.model == model]
        measured = [cell for cell in cells if cell.status in ("measured", "timed")]
        if measured:
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
        kind = "random weights: no quality" if document.synthetic else "95% bootstrap intervals"
        yield from wrapped(f"{model} on {corpus.name}: {size(corpus, cells)}; {kind}")
    if document.synthetic:
        yield from table([row for cell in cells for row in _speed_rows(cell)])
        return
    extended = any(cell.looks > 1 for cell in cells)
    yield from table([_cell_row(cell, extended) for cell in cells])
    yield from _saved(cells)
    reference = next((cell for cell in cells if cell.quantization == REFERENCE), None)
    tables = (_layer_rows, partial(definition_rows, reference), _splice_rows, _cost_rows)
    for rows_of in tables:
        if rows := [row for cell in cells for row in rows_of(cell)]:
            yield ""
            yield from table(rows)
    yield ""
    if document.protocol == STUDY:
        yield from study_lines(cells, document.published.get(model, {}))
    for note in notes(cells, document):
        yield from wrapped(f"note: {note}")


def size(corpus: CorpusRecord, cells: list[CellRecord]) -> str:
    most = max(cell.tokens for cell in cells)
    if any(cell.looks > 1 for cell in cells):
        return (
            f"{corpus.tokens:,} to {most:,} tokens a cell, sequences of {corpus.sequence_length} (on more "
            "text absolute values are others: compare the changes)"
        )
    return f"{corpus.tokens:,} tokens in {corpus.sequences} sequences of {corpus.sequence_length}"


def _saved(cells: list[CellRecord]) -> Iterator[str]:
    """What deciding early spared, where cells might have run on."""
    judged = [c for c in cells if c.quantization != REFERENCE and c.planned_tokens and c.verdicts]
    used, planned = (sum(getattr(c, key) for c in judged) for key in ("tokens", "planned_tokens"))
    if planned > used:
        yield from wrapped(f"decided on {used:,} of at most {planned:,} tokens: {planned - used:,} saved")


def _cell_row(cell: CellRecord, extended: bool = False) -> dict[str, str]:
    """``extended``: some cell of the model ran on beyond its first tokens, so each says how many it has."""
    get = cell.metrics.get
    quantized = cell.quantization != REFERENCE
    return {
        "quantization": cell.quantization,
        **({"tokens": f"{cell.tokens:,}"} if extended else {}),
        "perplexity": number(get("perplexity"), ".4f"),
        "change %": interval(get("perplexity_increase_pct"), "+.3f") if quantized else "",
        "KLD": number(get("kl_divergence"), ".2e") if quantized else "",
        "top-1": number(get("top1_agreement"), ".4f") if quantized else "",
        "bits/w": number(get("bits_per_weight"), ".2f"),
        "tokens/s": cost(cell, "prefill_tokens_per_second"),
        "verdict": verdict_word(cell),
    }


def _layer_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    quantized = cell.quantization != REFERENCE
    for layer, record in cell.layers.items():
        get = record.metrics.get
        ratio = get("resolution_ratio")
        known = quantized and ratio is not None and ratio.value is not None
        yield {
            "quantization": cell.quantization,
            "layer": layer,
            "FVU": number(get("fvu"), ".5f"),
            "drift": interval(get("fvu_drift"), "+.5f") if quantized else "",
            "L0": number(get("l0"), ".1f"),
            "survival": number(get("feature_survival"), ".3f") if quantized else "",
            "moved/FVU": number(ratio, ".3f") if quantized else "",
            "a flat FVU is": read_resolution([ratio.value]) if known else "",  # type: ignore[union-attr,list-item]
        }


def definition_rows(reference: CellRecord | None, cell: CellRecord) -> Iterator[dict[str, str]]:
    """FVU by each definition, and its change in percent of itself."""
    for layer, record in cell.layers.items():
        row = {"quantization": cell.quantization, "layer": layer}
        for key in FVU_DEFINITIONS:
            value = record.metrics.get(key)
            text = number(value, ".5f")
            other = (cell.beside or reference).layers.get(layer) if reference not in (None, cell) else None
            change = relative(value, other.metrics.get(key)) if other else None
            row[key] = text if change is None else f"{text} ({100 * change:+.2f}%)"
        yield row


def _splice_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    """Of runs with --splice: nats a token, and their excess over the reference's."""
    quantized = cell.quantization != REFERENCE
    for layer, record in cell.layers.items():
        get = record.metrics.get
        if get("splice_loss") is not None:
            yield {
                "quantization": cell.quantization,
                "layer": layer,
                "splice loss": interval(get("splice_loss"), ".4f"),
                "excess": interval(get("splice_excess"), "+.4f") if quantized else "",
                "loss recovered": number(get("loss_recovered"), ".4f"),
            }


def _speed_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    """Of runs with --synthetic: what is real there."""
    get = cell.metrics.get
    yield {
        "quantization": cell.quantization,
        "bits/w": number(get("bits_per_weight"), ".2f"),
        "prefill/s": cost(cell, "prefill_tokens_per_second"),
        **next(_cost_rows(cell), {}),
        "verdict": verdict_word(cell) if cell.verdicts else "n/a",
    }


def _cost_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    """Speed (tokens a second) and memory, where they were taken."""
    get = cell.metrics.get
    if get("load_seconds") is None:
        return
    yield {
        "quantization": cell.quantization,
        "load s": cost(cell, "load_seconds", ".2f"),
        "decode/s": cost(cell, "decode_tokens_per_second"),
        "SAE/s": cost(cell, "sae_tokens_per_second"),
        "evaluation/s": cost(cell, "evaluation_tokens_per_second"),
        "overhead": number(get("evaluation_overhead"), ".2f"),
        "weights MB": megabytes(get("weight_bytes")) + marks(cell, "weight_bytes"),
        "peak MB": megabytes(get("peak_memory_bytes")) + marks(cell, "peak_memory_bytes"),
    }


def cost(cell: CellRecord, key: str, form: str = ",.0f") -> str:
    """Return a cost as text, marked where it is not the quantization's own."""
    text = number(cell.metrics.get(key), form)
    return text + marks(cell, key) if text != "–" else text


def marks(cell: CellRecord, key: str) -> str:
    """Return the marks of a cost that is not the quantization's own, '' for one that is."""
    why = not_own(cell, key)
    return "".join(mark for condition, mark in MARKS.items() if condition in why)


def verdict_word(cell: CellRecord) -> str:
    """The gravest verdict of a cell; where nothing was judged, a dash."""
    found = {verdict.status for verdict in cell.verdicts}
    if cell.reason and not found & FAILING:
        return "invalid"
    return worst_status(found) or "–"


def number(value: Value | None, form: str) -> str:
    """A number as ``form`` says, a dash where there is none."""
    if value is None:
        return "–"
    return "not finite" if value.value is None else format(value.value, form)


def interval(value: Value | None, form: str) -> str:
    """``value ± half the interval``."""
    text = number(value, form)
    if value is None or value.low is None or value.high is None:
        return text
    return f"{text} ± {(value.high - value.low) / 2:{form.lstrip('+')}}"


def megabytes(value: Value | None) -> str:
    return "–" if value is None or value.value is None else f"{value.value / 1e6:,.1f}"
