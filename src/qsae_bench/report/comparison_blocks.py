"""``qsae-bench compare``: A against B, and who dominates whom, for a terminal and as GitHub's markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qsae_bench.metrics import GROUPS
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report import markdown
from qsae_bench.report import tables as columns
from qsae_bench.report.blocks import Block, Heading, Paragraph, Table
from qsae_bench.report.terminal import interval, megabytes, number
from qsae_bench.results import pareto
from qsae_bench.results.cell_pairs import RunCell
from qsae_bench.results.compare import Compared, Comparison
from qsae_bench.results.document import SHARED_DEVICE, CellRecord, Value
from qsae_bench.stats.comparison import COMPARISON_ALPHA, Difference

COSTS = (
    "bits_per_weight", "weight_bytes", "peak_memory_bytes", "load_seconds", "prefill_tokens_per_second",
    "decode_tokens_per_second", "evaluation_tokens_per_second", "quantized_share", "weight_nsr",
    "weight_gain_error",
)  # fmt: skip
"""shown beside, not tested"""
SHORT = {
    "kl_divergence": "KLD", "feature_survival": "survival", "bits_per_weight": "bits/w",
    "prefill_tokens_per_second": "tokens/s", "evaluation_tokens_per_second": "tokens/s",
}  # fmt: skip
SIMULATED = "simulated: rounded values are kept as floats; speed and memory are not the recipe's"


def terminal_lines(outcome: Comparison) -> Iterator[str]:
    """Within 100 columns; an empty line around each table."""
    before: Block | None = None
    for block in blocks(outcome, wide=False):
        if before is not None and not (isinstance(block, Paragraph) and not isinstance(before, Table)):
            yield ""
        if isinstance(block, Table):
            yield from columns.table([{k: str(cell) for k, cell in row.items()} for row in block.rows])
        elif isinstance(block, Heading | Paragraph):
            yield from columns.wrapped(block.text)
        before = block


def markdown_lines(outcome: Comparison) -> Iterator[str]:
    """Tables with pipes; nothing that a name holds can end a cell or start markup."""
    return markdown.lines(blocks(outcome, wide=True))


def blocks(outcome: Comparison, wide: bool) -> Iterator[Block]:
    """What is said, in order; ``wide`` tables have bounds and the p of each test alone as well."""
    for one in outcome.compared:
        yield from pair_blocks(one, wide)
    if outcome.compared:
        yield Paragraph(how_tested(outcome))
    for model, recipes in outcome.overview:
        yield from overview_blocks(model, recipes)
    for line in outcome.left_out:
        yield Paragraph(f"left out: {line}")


def pair_blocks(one: Compared, wide: bool) -> Iterator[Block]:
    a, b = one.pair.a, one.pair.b
    runs = f"both of run {a.run.folder.name}"
    if not one.pair.one_run:
        runs = f"A of run {a.run.folder.name}, B of run {b.run.folder.name}"
    yield Heading(f"{a.cell.model}: A = {a.cell.quantization}, B = {b.cell.quantization}; {runs}")
    corpus = f" of {a.corpus.name}" if a.corpus else ""
    yield Paragraph(
        f"{one.tokens:,} tokens in {one.sequences} sequences{corpus}, the same for both; "
        '"better": A is better than B'
    )
    for of_cell in (True, False):
        chosen = [d for d in one.differences if (d.layer is None) == of_cell]
        if chosen:
            where = "the cell" if of_cell else "each layer"
            yield Table(
                [_difference_row(d, one.sequences, wide) for d in chosen], f"A − B, metrics of {where}"
            )
    yield Paragraph(_in_short(one))
    if costs := [row for key in COSTS if (row := _cost_row(key, a, b))]:
        yield Table(costs, "Beside, not tested")
    for side, letter in ((a, "A"), (b, "B")):
        if side.cell.simulated:
            yield Paragraph(f"note: {letter} ({side.cell.quantization}): {SIMULATED}")
        if side.cell.shared_device:
            yield Paragraph(
                f"note: {letter} ({side.cell.quantization}): no load and speeds: {SHARED_DEVICE}"
            )
    for note in one.notes:
        yield Paragraph(f"note: {note}")


def _in_short(one: Compared) -> str:
    """The verdicts counted: what a reader wants first."""
    said = Counter(d.verdict for d in one.differences if d.tested.p is not None)
    a, b = one.pair.a.cell.quantization, one.pair.b.cell.quantization
    names = (a, b) if one.pair.one_run else (f"A's {a}", f"B's {b}")
    counts = f"better in {said['better']}, worse in {said['worse']}, of {sum(said.values())} tests"
    return f"in short: {names[0]} against {names[1]}: {counts}"


def _difference_row(d: Difference, sequences: int, wide: bool) -> dict[str, str]:
    e = d.tested.difference
    value = Value(value=_finite(e.value), low=_finite(e.low), high=_finite(e.high))
    row = {"metric": d.metric, **({} if d.layer is None else {"layer": str(d.layer)})}
    row |= {"A": _plain(d.tested.a), "B": _plain(d.tested.b)}
    if not wide:
        return row | {
            "A − B": _plain(e.value, "+.3g") + ("" if value.low is None else f" ± {e.half_width:.2g}"),
            "Holm p": _plain(d.adjusted_p, ".2g"), f"A, at n = {sequences}": d.verdict,
        }  # fmt: skip
    bounds = "–" if value.low is None or value.high is None else f"{value.low:+.3g} to {value.high:+.3g}"
    at = f" at n = {sequences}" if d.verdict == "no difference shown" else ""
    return row | {
        "A − B": _plain(e.value, "+.3g"), "95% interval": bounds, "p": _plain(d.tested.p, ".2g"),
        "p (Holm)": _plain(d.adjusted_p, ".2g"), "A is": d.verdict + at,
    }  # fmt: skip


def _finite(number: float | None) -> float | None:
    return number if number is not None and abs(number) < float("inf") else None


def _plain(number: float | None, form: str = ".4g") -> str:
    known = _finite(number)
    return "–" if known is None else format(known, form)


def _cost_row(key: str, a: RunCell, b: RunCell) -> dict[str, str] | None:
    """Nothing where neither side was timed."""
    if key not in a.cell.metrics and key not in b.cell.metrics:
        return None
    one, other = (pareto.cost(side.cell, key) for side in (a, b))
    ratio = f"{one / other:.3g}" if one is not None and other else "–"
    return {"beside": key, "A": _cost(key, one), "B": _cost(key, other), "A / B": ratio}


def _cost(key: str, number: float | None) -> str:
    if number is None:
        return "–"
    if key.endswith("_bytes"):
        return f"{megabytes(Value(value=number))} MB"
    if key in GROUPS["weights"]:
        return f"{number:.3g}"
    return f"{number:,.0f}" if key.endswith("_per_second") else f"{number:.2f}"


def how_tested(outcome: Comparison) -> str:
    found = [d for one in outcome.compared for d in one.differences if d.tested.p is not None]
    ways = {d.tested.method for d in found}
    how = []
    if "label swap" in ways:
        how.append(f"{outcome.swaps:,} exchanges of A's and B's rows at random, sequence by sequence")
    if "jackknife" in ways:
        how.append("for features a jackknife over blocks of sequences")
    if "block swap" in ways:
        how.append("without spread over the blocks (no ±) every exchange of whole blocks")
    tests = f"all {len(found)} tests" if len(found) > 1 else "1 test"
    return (
        "95% interval of A − B (± is half of it): a paired bootstrap over sequences, for features the "
        f"jackknife's; not corrected. p: {'; '.join(how)}; corrected for {tests} above (Holm), called at "
        f"p ≤ {COMPARISON_ALPHA:g}. What stands beside is shown, not tested."
    )


def overview_blocks(model: str, recipes: Sequence[tuple[str, RunCell]]) -> Iterator[Block]:
    corpus = next((side.corpus for _, side in recipes if side.corpus), None)
    where = f" on {corpus.name}: {corpus.tokens:,} tokens in {corpus.sequences} sequences" if corpus else ""
    yield Heading(f"{model}{where}; quality against cost")
    points = {name: pareto.point(side.cell) for name, side in recipes}
    planes = pareto.planes(points)
    speed = next((cost.key for _, cost in planes if cost != pareto.BITS), pareto.SPEEDS[0].key)
    yield Table([_recipe_row(name, side.cell, speed) for name, side in recipes], "Recipes")
    taking_part = [(name, side) for name, side in recipes if pareto.takes_part(side.cell)]
    if taking_part:
        found = {_title(plane): pareto.dominators(points, plane) for plane in planes}
        yield Table(
            [
                {"Pareto": name} | {title: _standing(found[title].get(name)) for title in found}
                for name, _ in taking_part
            ],
            "Who dominates whom",
        )
        yield Paragraph(
            "front: no other recipe is as good on both axes and better on one; by NAME: NAME is, and so "
            "dominates it. From the values above, without their intervals. survival: the lowest layer's; "
            f"tokens/s: {speed}. The reference takes no part: it has lost nothing by definition."
        )
    if simulated := [name for name, side in recipes if side.cell.simulated]:
        yield Paragraph(f"note: {', '.join(simulated)}: {SIMULATED}")
    if shared := [name for name, side in recipes if side.cell.shared_device]:
        yield Paragraph(f"note: {', '.join(shared)}: no load and speeds: {SHARED_DEVICE}")
    for name, side in recipes:
        if side.cell.quantization != REFERENCE and not pareto.takes_part(side.cell):
            yield Paragraph(f"note: {name} takes no part: {side.cell.reason or side.cell.status}")


def _title(plane: pareto.Plane) -> str:
    quality, cost = plane
    return f"{SHORT[quality.key]}, {SHORT[cost.key]}"


def _standing(dominators: tuple[str, ...] | None) -> str:
    if dominators is None:
        return "–"
    return f"by {dominators[0]}" if dominators else "front"


def _recipe_row(name: str, cell: CellRecord, speed: str) -> dict[str, str]:
    get = cell.metrics.get
    quantized = cell.quantization != REFERENCE
    return {
        "quantization": name,
        "change %": interval(get("perplexity_increase_pct"), "+.3f") if quantized else "",
        "KLD": number(get("kl_divergence"), ".2e") if quantized else "",
        "top-1": number(get("top1_agreement"), ".4f") if quantized else "",
        "survival": _plain(pareto.survival(cell), ".3f") if quantized else "",
        "bits/w": _plain(pareto.cost(cell, "bits_per_weight"), ".2f"),
        "tokens/s": _plain(pareto.cost(cell, speed), ",.0f"),
    }
