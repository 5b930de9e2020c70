"""What a report says about one model: tables and figures, from the loss down to the cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from qsae_bench.metrics.residual import read_resolution
from qsae_bench.registry.entries import STUDY
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report.blocks import Block, Code, Figure, Heading, Items, Link, Mark, Paragraph, Row, Table
from qsae_bench.report.comparison_blocks import overview_blocks
from qsae_bench.report.figures.cost import cost_figure, pareto_figure
from qsae_bench.report.figures.features import survival_figure
from qsae_bench.report.figures.history import has_changed, history_figure
from qsae_bench.report.figures.loss import loss_figure, stability_figure
from qsae_bench.report.figures.reconstruction import definitions_figure, fvu_figure, resolution_figure
from qsae_bench.report.history import formula_notes, words
from qsae_bench.report.notes import notes
from qsae_bench.report.number_format import supported
from qsae_bench.report.sections import word
from qsae_bench.report.study import study_lines
from qsae_bench.report.terminal import cost, definition_rows, marks, megabytes, number, size
from qsae_bench.results import pareto
from qsae_bench.results.cell_pairs import RunCell, StoredRun
from qsae_bench.results.document import CellRecord, FeatureRecord, RunDocument
from qsae_bench.results.history.queries import Series

NEURONPEDIA = "https://www.neuronpedia.org"
WORST_ROWS = 60
"""of the table of worst features, all cells and layers of a model together"""
READINGS = {
    "informative": "the perturbation is at or above what the SAE leaves unexplained: a flat FVU is a "
    "finding",
    "uninformative": "the perturbation is far below what the SAE can resolve: a flat FVU would say nothing",
    "with care": "the perturbation is near what the SAE can resolve: read a flat FVU with care",
}


def measured(document: RunDocument, model: str) -> list[CellRecord]:
    return [c for c in document.cells if c.model == model and c.status in ("measured", "timed")]


def blocks(
    document: RunDocument, model: str, anchor: str, folder: Path, nights: Sequence[Series]
) -> Iterator[Block]:
    """In the order of the questions: behaviour, SAEs, features, tokens, cost, nights."""
    cells = measured(document, model)
    reference = next((cell for cell in cells if cell.quantization == REFERENCE), None)
    quantized = [cell for cell in cells if cell is not reference]
    corpus = document.corpus.get(model)
    if corpus is not None:
        kind = (
            "random weights: timings and memory are real, nothing else is"
            if document.synthetic
            else "95% intervals"
        )
        yield Paragraph(f"On {corpus.name}: {size(corpus, cells)}; {kind}.")
    if found := list(notes(cells, document)):
        yield Items(found)
    if not document.synthetic:
        yield Heading("Does it still predict text as the original does?")
        yield Table([_loss_row(cell) for cell in cells], f"{model}: loss and output distribution")
        yield from _figure(loss_figure(anchor, quantized))
        if any(cell.layers for cell in cells):
            yield from _sae_blocks(document, model, anchor, cells, quantized, reference)
        yield from _headed("Is that enough text?", stability_figure(anchor, quantized))
    if document.protocol == STUDY:
        yield Heading("The study's tables")
        yield Code(list(study_lines(cells, document.published.get(model, {}))))
    yield from _cost_blocks(document, model, anchor, folder, cells)
    figure = history_figure(anchor, nights)
    if figure is not None:
        yield from (Heading("Run by run"), figure, Items(list(_levels(nights))))


def _figure(figure: Figure | None) -> Iterator[Block]:
    if figure is not None:
        yield figure


def _headed(text: str, figure: Figure | None) -> Iterator[Block]:
    if figure is not None:
        yield from (Heading(text), figure)


def _loss_row(cell: CellRecord) -> Row:
    get = cell.metrics.get
    quantized = cell.quantization != REFERENCE
    return {
        "quantization": cell.quantization,
        "verdict": Mark(word(cell)),
        "tokens": f"{cell.tokens:,}" if cell.tokens else "–",
        "perplexity": supported(get("perplexity")),
        "perplexity_increase_pct (%)": supported(get("perplexity_increase_pct"), signed=True)
        if quantized
        else "",
        "kl_divergence (nats)": supported(get("kl_divergence")) if quantized else "",
        "top1_agreement": supported(get("top1_agreement")) if quantized else "",
        "bits_per_weight": number(get("bits_per_weight"), ".2f"),
    }


def _sae_blocks(
    document: RunDocument,
    model: str,
    anchor: str,
    cells: list[CellRecord],
    quantized: list[CellRecord],
    reference: CellRecord | None,
) -> Iterator[Block]:
    yield Heading("Do the SAEs still reconstruct it?")
    yield Table(
        [row for cell in cells for row in _layer_rows(cell)], f"{model}: SAE reconstruction by layer"
    )
    yield from _figure(fvu_figure(anchor, quantized, reference))
    if quantized and any(cell.layers for cell in quantized):
        yield Heading("Could a flat FVU have shown the damage?")
        yield from _figure(resolution_figure(anchor, quantized))
        yield Items(list(_readings(quantized)))
        yield Heading("Is FVU's answer one of its definition?")
        yield from _figure(definitions_figure(anchor, quantized, reference))
        yield Table(
            [row for cell in cells for row in definition_rows(reference, cell)],
            "FVU by each definition, and its change in percent of itself",
        )
        yield from _feature_blocks(document, model, anchor, quantized)


def _layer_rows(cell: CellRecord) -> Iterator[Row]:
    quantized = cell.quantization != REFERENCE
    for layer, record in cell.layers.items():
        get = record.metrics.get
        row: dict[str, str] = {
            "quantization": cell.quantization,
            "layer": layer,
            "fvu": supported(get("fvu")),
            "fvu_drift": supported(get("fvu_drift"), signed=True) if quantized else "",
            "fvu_fixed": supported(get("fvu_fixed")) if quantized else "",
            "l0 (features)": supported(get("l0")),
            "feature_survival": supported(get("feature_survival")) if quantized else "",
            "resolution_ratio": supported(get("resolution_ratio")) if quantized else "",
        }
        if get("splice_loss") is not None:
            row["splice_loss (nats/token)"] = supported(get("splice_loss"))
            row["splice_excess (nats/token)"] = (
                supported(get("splice_excess"), signed=True) if quantized else ""
            )
        yield row


def _readings(quantized: Sequence[CellRecord]) -> Iterator[str]:
    for cell in quantized:
        ratios = [record.metrics.get("resolution_ratio") for record in cell.layers.values()]
        known = [ratio.value for ratio in ratios if ratio is not None and ratio.value is not None]
        if known and len(known) == len(ratios):
            spread = f"{min(known):.2g}" + (f" to {max(known):.2g}" if len(known) > 1 else "")
            yield f"{cell.quantization}: resolution_ratio {spread}: {READINGS[read_resolution(known)]}"


def _feature_blocks(
    document: RunDocument, model: str, anchor: str, quantized: list[CellRecord]
) -> Iterator[Block]:
    figure = survival_figure(anchor, quantized)
    rows = _worst_rows(document, model, quantized)
    if figure is None and not rows:
        return
    yield Heading("Do its features still fire where they did?")
    yield from _figure(figure)
    if rows:
        yield Table(
            rows,
            "Features that lost most: weight × (1 − r), largest first in each cell and layer",
            len(rows) > 12,
        )


def _worst_rows(document: RunDocument, model: str, quantized: list[CellRecord]) -> list[Row]:
    places = [(c, layer, r) for c in quantized for layer, r in c.layers.items() if r.worst_features]
    each = max(1, WORST_ROWS // max(1, len(places)))
    ids = document.neuronpedia.get(model, {})
    return [
        {
            "quantization": cell.quantization,
            "layer": layer,
            "feature": _feature(ids.get(layer, ""), feature),
            "r": "–" if feature.correlation is None else f"{feature.correlation:.3f}",
            "slope": "–" if feature.slope is None else f"{feature.slope:.3f}",
            "active in the reference": f"{feature.active_reference:,}",
            "active in the quantized": f"{feature.active_quantized:,}",
            "weight": "–" if feature.weight is None else f"{feature.weight:.3g}",
        }
        for cell, layer, record in places
        for feature in record.worst_features[:each]
    ]


def _feature(sae: str, feature: FeatureRecord) -> Link | str:
    if not sae:
        return f"{feature.index}"
    return Link(f"{feature.index}", f"{NEURONPEDIA}/{quote(sae)}/{feature.index}")


def _cost_blocks(
    document: RunDocument, model: str, anchor: str, folder: Path, cells: list[CellRecord]
) -> Iterator[Block]:
    recipes = [(cell.quantization, cell) for cell in cells]
    taking_part = [(label, cell) for label, cell in recipes if pareto.takes_part(cell)]
    figure = None if document.synthetic else pareto_figure(anchor, taking_part)
    if figure is not None:
        yield from (Heading("Which is worth its cost?"), figure)
        run = StoredRun(folder, document)
        overview = overview_blocks(model, [(label, RunCell(run, cell)) for label, cell in recipes])
        yield from (block for block in overview if not isinstance(block, Heading))
    rows = [row for cell in cells for row in _cost_rows(cell)]
    drawn = cost_figure(anchor, cells)
    if rows or drawn:
        yield Heading("What does it cost?")
        yield from _figure(drawn)
    if rows:
        yield Table(rows, f"{model}: cost")


def _cost_rows(cell: CellRecord) -> Iterator[Row]:
    get = cell.metrics.get
    if get("load_seconds") is None and not cell.timings:
        return
    flags = sorted({flag for timing in cell.timings.values() for flag in timing.flags})
    yield {
        "quantization": cell.quantization,
        "load_seconds (s)": cost(cell, "load_seconds", ".2f"),
        "prefill (tokens/s)": cost(cell, "prefill_tokens_per_second"),
        "decode (tokens/s)": cost(cell, "decode_tokens_per_second"),
        "SAE (tokens/s)": cost(cell, "sae_tokens_per_second"),
        "evaluation (tokens/s)": cost(cell, "evaluation_tokens_per_second"),
        "weights (MB)": megabytes(get("weight_bytes")) + marks(cell, "weight_bytes"),
        "peak memory (MB)": megabytes(get("peak_memory_bytes")) + marks(cell, "peak_memory_bytes"),
        "disturbed by": ", ".join(flags) or "–",
    }


def _levels(nights: Sequence[Series]) -> Iterator[str]:
    """What moved, by name; of the rest only how many there are."""
    yield from formula_notes(nights)
    moved = [one for one in nights if has_changed(one)]
    yield from (f"{_series(one)}: {line}" for one in moved for line in words(one))
    if len(moved) < len(nights):
        rest = len(nights) - len(moved)
        most = max(len(one.runs) for one in nights)
        yield f"no change of level known in {rest} of {len(nights)} series, of up to {most} runs"


def _series(one: Series) -> str:
    return f"{one.quantization}{'' if one.layer is None else f' layer {one.layer}'} {one.metric}"
