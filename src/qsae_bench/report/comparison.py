"""Show A against B, and who dominates whom: on a terminal, as markdown, and as a part of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qsae_bench.metrics import GROUPS, headline
from qsae_bench.report import markdown, tables
from qsae_bench.report.blocks import Block, Heading, PagePart, Paragraph, Section, Table
from qsae_bench.report.figures.comparison import difference_figure
from qsae_bench.report.figures.cost import pareto_figure
from qsae_bench.report.notes import by_what_is_left_out
from qsae_bench.report.number_format import ShownColumns, cell_values, formatted, in_sequences, plain_number
from qsae_bench.results import pareto
from qsae_bench.results.cell_facts import SHARED_DEVICE
from qsae_bench.results.cell_pairs import RunCell
from qsae_bench.results.compare import Compared, Comparison
from qsae_bench.results.document import CellRecord, Value
from qsae_bench.stats.comparison import COMPARISON_ALPHA, Difference

OVERVIEW: ShownColumns = {
    "change %": ("perplexity_increase_pct", "+.3f±"), "KLD": ("kl_divergence", ".2e"),
    "top-1": ("top1_agreement", ".4f"),
}  # fmt: skip
SHORT = {"feature_survival": "survival", "bits_per_weight": "bits/w"}
"""metric -> what tables call it; a speed has the name of its unit"""
SHORT |= {key: head for head, (key, _) in OVERVIEW.items()} | dict.fromkeys(pareto.SPEEDS, "tokens/s")
SIMULATED_NOTE = "simulated: rounded values are kept as floats; speed and memory are not the quantization's"


def terminal_lines(outcome: Comparison) -> Iterator[str]:
    """Yield a comparison within 100 columns, with an empty line around each table."""
    before: Block | None = None
    for block in _blocks(outcome, wide=False):
        if before is not None and not (isinstance(block, Paragraph) and not isinstance(before, Table)):
            yield ""
        if isinstance(block, Table):
            yield from tables.table(block.rows)
        elif isinstance(block, Heading | Paragraph):
            yield from tables.wrapped(block.text)
        before = block


def markdown_lines(outcome: Comparison) -> Iterator[str]:
    """Yield a comparison as markdown, which no name can end or start markup in."""
    return markdown.lines(_blocks(outcome, wide=True))


def comparison_part(outcome: Comparison, names: Sequence[str]) -> PagePart:
    """Build a comparison's part of a report.

    Args:
        names: the operands, A and B, as they were given.
    """
    found = _verdicts(*outcome.compared)
    called = ", ".join(f"{word} in {found[word]}" for word in ("better", "worse", "differs") if found[word])
    tests = f"{found.total():,} tests"
    rows = list(map(_matrix_row, outcome.compared))
    sections = [_section(f"comparison-{index}", one) for index, one in enumerate(outcome.compared)]
    cost: list[Block] = []
    for index, (model, quantizations) in enumerate(outcome.overview):
        cost += drawn_overview(f"comparison-overview-{index}", model, quantizations)
    cost += [Heading("How it was tested"), Paragraph(_how_tested(outcome))]
    return PagePart(
        name="comparison",
        title=f"A = {names[0]} against B = {names[1]}",
        tone="",
        banner=f"of {tests}, A is {called}" if called else f"no difference shown in {tests}",
        blocks=[Table(rows, "Every pair, and in how many tests A differs from B"), *_left_out(outcome)],
        sections=[*sections, Section("comparison-cost", "Quality against cost", cost)],
    )


def _matrix_row(one: Compared) -> dict[str, str]:
    found = _verdicts(one)
    a, b = one.pair.a.cell, one.pair.b.cell
    return {
        "model": a.model, "A": a.quantization, "B": b.quantization, "A is better in": str(found["better"]),
        "worse in": str(found["worse"]), "of tests": str(found.total()),
    }  # fmt: skip


def _section(name: str, one: Compared) -> Section:
    title, *blocks = _pair_blocks(one, wide=True)
    assert isinstance(title, Heading)
    if figure := difference_figure(name, one.differences):
        blocks.insert(1, figure)
    return Section(name, title.text, blocks)


def _verdicts(*compared: Compared) -> Counter[str]:
    """Count the verdicts of all tests."""
    return Counter(d.verdict for one in compared for d in one.differences if d.tested.p is not None)


def _blocks(outcome: Comparison, wide: bool) -> Iterator[Block]:
    """Yield everything in order; ``wide`` tables have bounds and the p of each test alone as well."""
    for one in outcome.compared:
        yield from _pair_blocks(one, wide)
    if outcome.compared:
        yield Paragraph(_how_tested(outcome))
    for model, quantizations in outcome.overview:
        yield from _overview(model, quantizations)
    yield from _left_out(outcome)


def _left_out(outcome: Comparison) -> Iterator[Block]:
    return (Paragraph(f"left out: {line}") for line in outcome.left_out)


def _pair_blocks(one: Compared, wide: bool) -> Iterator[Block]:
    a, b = one.pair.a, one.pair.b
    runs = f"both of run {a.run.folder.name}"
    if not one.pair.one_run:
        runs = f"A of run {a.run.folder.name}, B of run {b.run.folder.name}"
    yield Heading(f"{a.cell.model}: A = {a.cell.quantization}, B = {b.cell.quantization}; {runs}")
    corpus = f" of {a.corpus.name}" if a.corpus else ""
    is_one_document = a.corpus is not None and a.corpus.is_one_document
    counts = in_sequences(one.sequences, one.documents, is_one_document)
    rest_on = one.sequences if one.documents is None else one.documents
    yield Paragraph(
        f'{one.tokens:,} tokens{corpus}{counts}, the same for both; "better": A is better than B'
    )
    for where in ("the cell", "each layer"):
        chosen = [d for d in one.differences if (d.layer is None) == (where == "the cell")]
        if rows := [_difference_row(d, rest_on, wide) for d in chosen]:
            yield Table(rows, f"A − B, metrics of {where}")
    yield Paragraph(_in_short(one))
    if costs := [row for key in headline("beside") if (row := _cost_row(key, a, b))]:
        yield Table(costs, "Beside, not tested")
    for side, letter in ((a, "A"), (b, "B")):
        yield from _cost_notes({f"{letter} ({side.cell.quantization})": side.cell})
    for note in one.notes:
        yield Paragraph(f"note: {note}")


def _cost_notes(cells: Mapping[str, CellRecord]) -> Iterator[Paragraph]:
    """Say whose costs are not the quantization's own."""
    for without, simulated in by_what_is_left_out(cells).items():
        more = f"; quality is that of the weights' rounding only: {without}" if without else ""
        yield Paragraph(f"note: {', '.join(simulated)}: {SIMULATED_NOTE}{more}")
    if shared := [name for name, cell in cells.items() if cell.shared_device]:
        yield Paragraph(f"note: {', '.join(shared)}: no load and speeds: {SHARED_DEVICE}")


def _in_short(one: Compared) -> str:
    """Count the verdicts: what a reader wants first."""
    found = _verdicts(one)
    a, b = one.pair.a.cell.quantization, one.pair.b.cell.quantization
    names = (a, b) if one.pair.one_run else (f"A's {a}", f"B's {b}")
    counts = f"better in {found['better']}, worse in {found['worse']}, of {found.total()} tests"
    return f"in short: {names[0]} against {names[1]}: {counts}"


def _difference_row(d: Difference, documents: int, wide: bool) -> dict[str, str]:
    e = d.tested.difference
    known = e.low is not None and e.high is not None and math.isfinite(e.low) and math.isfinite(e.high)
    row = {"metric": d.metric, **({} if d.layer is None else {"layer": str(d.layer)})}
    row |= {"A": plain_number(d.tested.a), "B": plain_number(d.tested.b)}
    difference, adjusted = plain_number(e.value, "+.3g"), plain_number(d.adjusted_p, ".2g")
    if not wide:
        half = f" ± {e.half_width:.2g}" if known else ""
        return row | {"A − B": difference + half, "Holm p": adjusted, f"A, at n = {documents}": d.verdict}
    at = f" at n = {documents}" if d.verdict == "no difference shown" else ""
    return row | {
        "A − B": difference, "95% interval": f"{e.low:+.3g} to {e.high:+.3g}" if known else "–",
        "p": plain_number(d.tested.p, ".2g"), "p (Holm)": adjusted, "A is": d.verdict + at,
    }  # fmt: skip


def _cost_row(key: str, a: RunCell, b: RunCell) -> dict[str, str] | None:
    """Return a cost of both sides; None if neither has it."""
    if key not in a.cell.metrics and key not in b.cell.metrics:
        return None
    one, other = (pareto.cost(side.cell, key) for side in (a, b))
    ratio = f"{one / other:.3g}" if one is not None and other else "–"
    return {"beside": key, "A": _cost(key, one), "B": _cost(key, other), "A / B": ratio}


def _cost(key: str, number: float | None) -> str:
    if number is None:
        return "–"
    if key.endswith("_bytes"):
        return f"{formatted(Value(value=number), 'MB')} MB"
    if key in GROUPS["weights"]:
        return f"{number:.3g}"
    return f"{number:,.0f}" if key.endswith("_per_second") else f"{number:.2f}"


def _how_tested(outcome: Comparison) -> str:
    found = [d for one in outcome.compared for d in one.differences if d.tested.p is not None]
    ways = {d.tested.method for d in found}
    how = []
    if "label swap" in ways:
        how.append(f"{outcome.swaps:,} exchanges of A's and B's rows at random, document by document")
    if "jackknife" in ways:
        how.append("for features a jackknife over blocks of documents")
    if "block swap" in ways:
        how.append("without spread over the blocks (no ±) every exchange of whole blocks")
    tests = f"all {len(found)} tests" if len(found) > 1 else "1 test"
    return (
        "n: documents (sequences, where those are unknown). 95% interval of A − B (± is half of it): a "
        "paired bootstrap over documents, for features the "
        f"jackknife's; not corrected. p: {'; '.join(how)}; corrected for {tests} above (Holm), called at "
        f"p ≤ {COMPARISON_ALPHA:g}. What stands beside is shown, not tested."
    )


def _overview(model: str, quantizations: Sequence[tuple[str, RunCell]]) -> Iterator[Block]:
    corpus = next((side.corpus for _, side in quantizations if side.corpus), None)
    where = ""
    if corpus is not None:
        counts = in_sequences(corpus.sequences, corpus.documents, corpus.is_one_document)
        where = f" on {corpus.name}: {corpus.tokens:,} tokens{counts}"
    yield Heading(f"{model}{where}; quality against cost")
    points = {name: pareto.point(side.cell) for name, side in quantizations}
    planes = pareto.planes(points)
    speed = next((cost for _, cost in planes if cost in pareto.SPEEDS), pareto.SPEEDS[0])
    yield Table(
        [_quantization_row(name, side.cell, speed) for name, side in quantizations], "Quantizations"
    )
    if taking_part := [name for name, side in quantizations if pareto.takes_part(side.cell)]:
        found = {f"{SHORT[q]}, {SHORT[c]}": pareto.dominators(points, (q, c)) for q, c in planes}
        rows = [
            {"Pareto": name} | {title: _standing(by.get(name)) for title, by in found.items()}
            for name in taking_part
        ]
        yield Table(rows, "Who dominates whom")
        yield Paragraph(
            "front: no other quantization is as good on both axes and better on one; by NAME: NAME is, and "
            "so dominates it. From the values above, without their intervals. survival: the lowest "
            f"layer's; tokens/s: {speed}. The reference takes no part: it has lost nothing by definition."
        )
    yield from _cost_notes({name: side.cell for name, side in quantizations})
    for name, side in quantizations:
        if not side.cell.is_reference and not pareto.takes_part(side.cell):
            yield Paragraph(f"note: {name} takes no part: {side.cell.reason or side.cell.status}")


def drawn_overview(name: str, model: str, quantizations: Sequence[tuple[str, RunCell]]) -> list[Block]:
    """Return quality against cost with its figure, if there is one, behind the heading."""
    title, *rest = _overview(model, quantizations)
    figure = pareto_figure(
        name, [(label, s.cell) for label, s in quantizations if pareto.takes_part(s.cell)]
    )
    return [title, *([figure] if figure else []), *rest]


def _standing(dominators: tuple[str, ...] | None) -> str:
    if dominators is None:
        return "–"
    return f"by {dominators[0]}" if dominators else "front"


def _quantization_row(name: str, cell: CellRecord, speed: str) -> dict[str, str]:
    survival = "" if cell.is_reference else plain_number(pareto.quality(cell, "feature_survival"), ".3f")
    return {
        "quantization": name, **cell_values(cell, OVERVIEW), "survival": survival,
        "bits/w": plain_number(pareto.cost(cell, "bits_per_weight"), ".2f"),
        "tokens/s": plain_number(pareto.cost(cell, speed), ",.0f"),
    }  # fmt: skip
