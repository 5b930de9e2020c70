"""Build the section of a report about one model: tables and figures, from the loss down to the cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from qsae_bench.registry.entries import STUDY
from qsae_bench.report.blocks import Block, Code, Figure, Heading, Items, Link, Mark, Paragraph, Row, Table
from qsae_bench.report.comparison import drawn_overview
from qsae_bench.report.figures.cost import cost_figure
from qsae_bench.report.figures.features import survival_figure
from qsae_bench.report.figures.history import history_figure
from qsae_bench.report.figures.loss import loss_figure, stability_figure
from qsae_bench.report.figures.reconstruction import definitions_figure, fvu_figure, resolution_figure
from qsae_bench.report.history import formula_notes, has_changed, words
from qsae_bench.report.notes import notes
from qsae_bench.report.number_format import ShownColumns, cell_values, layer_rows, plain_number
from qsae_bench.report.sections import word
from qsae_bench.report.study import study_lines
from qsae_bench.report.terminal import definition_rows, size
from qsae_bench.results.cell_facts import FeatureRecord
from qsae_bench.results.cell_pairs import RunCell, StoredRun
from qsae_bench.results.document import CellRecord, RunDocument
from qsae_bench.results.history.queries import Series
from qsae_bench.stats.flat_fvu import FlatFvu, read_flat_fvu

SECTION_LOSS: ShownColumns = {
    "perplexity": ("perplexity", "auto"),
    "perplexity_increase_pct (%)": ("perplexity_increase_pct", "+auto"),
    "kl_divergence (nats)": ("kl_divergence", "auto"), "top1_agreement": ("top1_agreement", "auto"),
    "bits_per_weight": ("bits_per_weight", ".2f"),
}  # fmt: skip
SECTION_WRITING: ShownColumns = {
    "decode_kl_divergence (nats)": ("decode_kl_divergence", "auto"),
    "greedy_agreement (tokens)": ("greedy_agreement_tokens", "auto"),
}  # fmt: skip
SECTION_LAYER: ShownColumns = {
    "fvu": ("fvu", "auto"), "fvu_drift": ("fvu_drift", "+auto"), "fvu_fixed": ("fvu_fixed", "auto"),
    "l0 (features)": ("l0", "auto"), "feature_survival": ("feature_survival", "auto"),
    "drift_resolution": ("drift_resolution", "auto"),
}  # fmt: skip
SECTION_SPLICE: ShownColumns = {
    "splice_loss (nats/token)": ("splice_loss", "auto"),
    "splice_excess (nats/token)": ("splice_excess", "+auto"),
}  # fmt: skip
SECTION_COST: ShownColumns = {
    "load_seconds (s)": ("load_seconds", ".2f*"),
    "prefill (tokens/s)": ("prefill_tokens_per_second", ",.0f*"),
    "decode (tokens/s)": ("decode_tokens_per_second", ",.0f*"),
    "SAE (tokens/s)": ("sae_tokens_per_second", ",.0f*"),
    "evaluation (tokens/s)": ("evaluation_tokens_per_second", ",.0f*"),
    "weights (MB)": ("weight_bytes", "MB*"), "peak memory (MB)": ("peak_memory_bytes", "MB*"),
}  # fmt: skip
NEURONPEDIA = "https://www.neuronpedia.org"
WORST_ROWS = 60
"""of the table of worst features, all cells and layers of a model together"""
READINGS: dict[FlatFvu, str] = {
    "a finding": "FVU is flat, these tokens would have shown a drift as large as the perturbation, and "
    "cross_fvu and feature_survival agree: a finding",
    "blind": "FVU is flat, but cross_fvu or feature_survival shows that the SAE no longer finds what it "
    "found: no finding, FVU is blind to which activation it is given",
    "unresolved": "these tokens could not have shown a drift as large as the perturbation: a flat FVU says "
    "nothing",
    "not flat": "FVU is not flat: it changed",
}


def measured(document: RunDocument, model: str) -> list[CellRecord]:
    """Return the cells of a model that have something to show."""
    return [c for c in document.cells if c.model == model and c.has_values]


class ModelSection:
    """Show the cells of one model in a report."""

    def __init__(
        self, document: RunDocument, model: str, anchor: str, folder: Path, series: Sequence[Series]
    ) -> None:
        """Take a model of a run.

        Args:
            anchor: what the names of the model's figures begin with.
            folder: the run's.
            series: headline series of the model's history.
        """
        self.document, self.model, self.anchor = document, model, anchor
        self.folder, self.series = folder, series
        self.cells = measured(document, model)
        self.reference = next((cell for cell in self.cells if cell.is_reference), None)
        self.quantized = [cell for cell in self.cells if cell is not self.reference]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks by question: behaviour, SAEs, features, tokens, cost, runs."""
        document, cells = self.document, self.cells
        if corpus := document.corpus.get(self.model):
            kind = "95% intervals"
            if document.synthetic:
                kind = "random weights: timings and memory are real, nothing else is"
            yield Paragraph(f"On {corpus.name}: {size(corpus, cells)}; {kind}.")
        if found := list(notes(cells, document)):
            yield Items(found)
        if not document.synthetic:
            yield Heading("Does it still predict text as the original does?")
            yield Table(list(map(_loss_row, cells)), f"{self.model}: loss and output distribution")
            yield from _figure(loss_figure(self.anchor, self.quantized))
            if rows := [row for cell in cells for row in _writing_rows(cell)]:
                yield Heading("Does it write one token at a time as it reads?")
                yield Table(rows, f"{self.model}: writing after a few prompts")
            if any(cell.layers for cell in cells):
                yield from self._sae_blocks()
            yield from _figure(stability_figure(self.anchor, self.quantized), "Is that enough text?")
        if document.protocol == STUDY:
            yield Heading("The study's tables")
            yield Code(list(study_lines(cells, document.published.get(self.model, {}))))
        yield from self._cost_blocks()
        if figure := history_figure(self.anchor, self.series):
            yield from (Heading("Run by run"), figure, Items(list(_levels(self.series))))

    def _sae_blocks(self) -> Iterator[Block]:
        anchor, quantized, reference = self.anchor, self.quantized, self.reference
        yield Heading("Do the SAEs still reconstruct it?")
        rows = [row for cell in self.cells for row in _layer_rows(cell)]
        yield Table(rows, f"{self.model}: SAE reconstruction by layer")
        yield from _figure(fvu_figure(anchor, quantized, reference))
        if not any(cell.layers for cell in quantized):
            return
        yield Heading("Could a flat FVU have shown the damage?")
        yield from _figure(resolution_figure(anchor, quantized))
        yield Items(list(_readings(quantized)))
        yield Heading("Is FVU's answer one of its definition?")
        yield from _figure(definitions_figure(anchor, quantized, reference))
        yield Table(
            [row for cell in self.cells for row in definition_rows(reference, cell)],
            "FVU by each definition, and its change in percent of itself",
        )
        figure, worst = survival_figure(anchor, quantized), self._worst_rows()
        if figure or worst:
            yield Heading("Do its features still fire where they did?")
            yield from _figure(figure)
        if worst:
            caption = "Features that lost most: weight × (1 − r), largest first in each cell and layer"
            yield Table(worst, caption, len(worst) > 12)

    def _worst_rows(self) -> list[Row]:
        places = [
            (c, layer, r) for c in self.quantized for layer, r in c.layers.items() if r.worst_features
        ]
        each = max(1, WORST_ROWS // max(1, len(places)))
        saes = self.document.neuronpedia.get(self.model, {})
        return [
            {
                "quantization": cell.quantization, "layer": layer,
                "feature": _feature(saes.get(layer, ""), feature),
                "r": plain_number(feature.correlation, ".3f"), "slope": plain_number(feature.slope, ".3f"),
                "active in the reference": f"{feature.active_reference:,}",
                "active in the quantized": f"{feature.active_quantized:,}",
                "weight": plain_number(feature.weight, ".3g"),
            }
            for cell, layer, record in places
            for feature in record.worst_features[:each]
        ]  # fmt: skip

    def _cost_blocks(self) -> Iterator[Block]:
        run = StoredRun(self.folder, self.document)
        quantizations = [(cell.quantization, RunCell(run, cell)) for cell in self.cells]
        overview = drawn_overview(self.anchor, self.model, quantizations)
        if not self.document.synthetic and any(isinstance(block, Figure) for block in overview):
            yield Heading("Which is worth its cost?")
            yield from (block for block in overview if not isinstance(block, Heading))
        rows = [row for cell in self.cells for row in _cost_rows(cell)]
        drawn = cost_figure(self.anchor, self.cells)
        if rows or drawn:
            yield Heading("What does it cost?")
            yield from _figure(drawn)
        if rows:
            yield Table(rows, f"{self.model}: cost")


def _figure(figure: Figure | None, heading: str = "") -> Iterator[Block]:
    """Yield a figure under its heading; nothing if there is no figure."""
    if figure is not None:
        yield from (Heading(heading), figure) if heading else (figure,)


def _loss_row(cell: CellRecord) -> Row:
    tokens = f"{cell.tokens:,}" if cell.tokens else "–"
    about: Row = {"quantization": cell.quantization, "verdict": Mark(word(cell)), "tokens": tokens}
    return {**about, **cell_values(cell, SECTION_LOSS)}


def _writing_rows(cell: CellRecord) -> Iterator[Row]:
    if any(metric in cell.metrics for metric, _ in SECTION_WRITING.values()):
        yield {"quantization": cell.quantization, **cell_values(cell, SECTION_WRITING)}


def _layer_rows(cell: CellRecord) -> Iterator[Row]:
    for row in layer_rows(cell, SECTION_LAYER):
        spliced = "splice_loss" in cell.layers[row["layer"]].metrics
        yield row | cell_values(cell, SECTION_SPLICE, row["layer"]) if spliced else row


def _readings(quantized: Sequence[CellRecord]) -> Iterator[str]:
    """Yield what a flat FVU says about each quantization, layers of one reading together."""
    for cell in quantized:
        layers: dict[FlatFvu, list[str]] = {}
        for layer, record in cell.layers.items():
            if reading := read_flat_fvu(record.metrics):
                layers.setdefault(reading, []).append(layer)
        for reading, same in layers.items():
            where = f"layer{'s' if len(same) > 1 else ''} {', '.join(same)}"
            yield f"{cell.quantization}, {where}: {READINGS[reading]}"


def _feature(sae: str, feature: FeatureRecord) -> Link | str:
    if not sae:
        return f"{feature.index}"
    return Link(f"{feature.index}", f"{NEURONPEDIA}/{quote(sae)}/{feature.index}")


def _cost_rows(cell: CellRecord) -> Iterator[Row]:
    if "load_seconds" not in cell.metrics and not cell.timings:
        return
    flags = sorted({flag for timing in cell.timings.values() for flag in timing.flags})
    disturbed = {"disturbed by": ", ".join(flags) or "–"}
    yield {"quantization": cell.quantization, **cell_values(cell, SECTION_COST), **disturbed}


def _levels(found: Sequence[Series]) -> Iterator[str]:
    """Say which series changed, and of how many others nothing is known."""
    yield from formula_notes(found)
    changed = [one for one in found if has_changed(one)]
    for one in changed:
        layer = "" if one.layer is None else f" layer {one.layer}"
        yield from (f"{one.quantization}{layer} {one.metric}: {line}" for line in words(one))
    if rest := len(found) - len(changed):
        most = max(len(one.runs) for one in found)
        yield f"no change of level known in {rest} of {len(found)} series, of up to {most} runs"
