"""A comparison's part of a report: A against B, two nights or two backends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qsae_bench.report.blocks import Block, Figure, Heading, PagePart, Paragraph, Section, Table
from qsae_bench.report.comparison_blocks import how_tested, overview_blocks, pair_blocks
from qsae_bench.report.figures.comparison import difference_figure
from qsae_bench.report.figures.cost import pareto_figure
from qsae_bench.results import pareto
from qsae_bench.results.compare import Compared, Comparison


def comparison_part(outcome: Comparison, names: Sequence[str]) -> PagePart:
    """What was tested, and what stands beside it.

    Args:
        names: the operands, A and B, as they were given.
    """
    said = Counter(d.verdict for one in outcome.compared for d in one.differences if d.tested.p is not None)
    tests = sum(said.values())
    called = ", ".join(f"{word} in {said[word]}" for word in ("better", "worse", "differs") if said[word])
    return PagePart(
        name="comparison",
        title=f"A = {names[0]} against B = {names[1]}",
        tone="",
        banner=f"of {tests:,} tests, A is {called}"
        if called
        else f"no difference shown in {tests:,} tests",
        blocks=[_matrix(outcome), *(Paragraph(f"left out: {line}") for line in outcome.left_out)],
        sections=[
            *(_section(f"comparison-{index}", one) for index, one in enumerate(outcome.compared)),
            Section(
                "comparison-cost",
                "Quality against cost",
                [*_overview(outcome), Heading("How it was tested"), Paragraph(how_tested(outcome))],
            ),
        ],
    )


def _matrix(outcome: Comparison) -> Table:
    rows = []
    for one in outcome.compared:
        said = Counter(d.verdict for d in one.differences if d.tested.p is not None)
        rows.append(
            {
                "model": one.pair.a.cell.model,
                "A": one.pair.a.cell.quantization,
                "B": one.pair.b.cell.quantization,
                "A is better in": str(said["better"]),
                "worse in": str(said["worse"]),
                "of tests": str(sum(said.values())),
            }
        )
    return Table(rows, "Every pair, and in how many tests A differs from B")


def _section(name: str, one: Compared) -> Section:
    blocks: list[Block] = list(pair_blocks(one, wide=True))
    (head, *rest) = blocks
    figure: Figure | None = difference_figure(name, one.differences)
    assert isinstance(head, Heading)
    return Section(name, head.text, [*rest[:1], *([figure] if figure else []), *rest[1:]])


def _overview(outcome: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for index, (model, recipes) in enumerate(outcome.overview):
        taking_part = [(label, side.cell) for label, side in recipes if pareto.takes_part(side.cell)]
        figure = pareto_figure(f"comparison-overview-{index}", taking_part)
        head, *rest = overview_blocks(model, recipes)
        blocks += [head, *([figure] if figure else []), *rest]
    return blocks
