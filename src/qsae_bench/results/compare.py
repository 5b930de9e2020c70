"""Compare stored cells for ``qsae-bench compare``: test each pair, then judge all tests together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.metrics import headline
from qsae_bench.metrics.base import Metric
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.cell_pairs import Operand, Pair, RunCell, StoredRun, check_has_model, find, pairs
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.rows import read_rows
from qsae_bench.stats import comparison
from qsae_bench.stats.comparison import Difference, check_comparable, common_layers, on_common_sequences
from qsae_bench.stats.documents import document_count
from qsae_bench.stats.permutation import Resampling, swaps_for


@dataclass(frozen=True)
class Compared:
    """Hold the result for one pair of cells."""

    pair: Pair
    sequences: int
    documents: int | None
    """documents that the sequences are from; rows of earlier versions don't know"""
    tokens: int
    differences: Sequence[Difference]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """Hold the result of one invocation."""

    compared: Sequence[Compared]
    swaps: int
    """replicates of each permutation test"""
    overview: Sequence[tuple[str, Sequence[tuple[str, RunCell]]]]
    """model, and its cells by a name that is unique in the table"""
    left_out: Sequence[str]
    """why pairs that were asked for could not be compared"""


def compare(
    operands: Sequence[str], run: Path, model: str | None = None, metrics: Iterable[str] = ()
) -> Comparison:
    """Test A against B for what the operands name, all tests corrected together.

    Args:
        operands: None or one run: no test, only the overview. One quantization: it is tested against every
            other of its run. Two: A against B; of two runs every quantized cell that both have.
        run: The run to which bare names belong.
        metrics: Keys of the metrics to test; empty for the headline metrics.

    Raises:
        QsaeError: An operand, model or metric is unknown; or nothing can be compared, or not the one pair
            that was asked for.
    """
    wanted = comparison.metrics_to_test(metrics or headline("comparison"))
    chosen = [find(text, run) for text in operands] or [Operand(StoredRun.read(run), None)]
    for operand in chosen:
        check_has_model(operand.run, model)
    a, b = chosen[0], chosen[1] if len(chosen) > 1 else None
    if b is None and a.quantization is None:
        return Comparison([], 0, _run_overview(a.run, model), [])
    asked = list(pairs(a, b, model))
    most_tests = sum(
        1 if metric.scope == "cell" else len(pair.a.cell.layers.keys() & pair.b.cell.layers.keys())
        for pair in asked
        for metric in wanted
    )
    how = Resampling(swaps=swaps_for(most_tests, comparison.COMPARISON_ALPHA))
    compared, left_out = _compared(asked, wanted, how)
    families = comparison.with_verdicts([one.differences for one in compared])
    compared = [replace(one, differences=found) for one, found in zip(compared, families, strict=True)]
    if b is None or a.run.folder == b.run.folder:
        models = {one.pair.a.cell.model for one in compared}
        overview = [entry for entry in _run_overview(a.run, model) if entry[0] in models]
    else:
        overview = _overview_of_two(compared)
    return Comparison(compared, how.swaps, overview, left_out)


def _compared(
    asked: Sequence[Pair], wanted: Sequence[Metric], how: Resampling
) -> tuple[list[Compared], list[str]]:
    """Compare the pairs that can be compared; return also why the others can't.

    Raises:
        QsaeError: No pair can be compared.
    """
    read = lru_cache(maxsize=2)(read_rows)  # A stays while the others take turns
    found, refused = [], []
    for pair in asked:
        try:
            found.append(_compare_pair(pair, wanted, read, how))
        except QsaeError as error:
            refused.append(str(error))
    refused = list(dict.fromkeys(refused))
    if not found:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise QsaeError(refused[0] + more)
    return found, refused


def _compare_pair(
    pair: Pair, wanted: Sequence[Metric], read: Callable[[Path], Measurement], how: Resampling
) -> Compared:
    if fault := pair.a.fault or pair.b.fault:
        raise QsaeError(fault)
    one, other = pair.a.corpus, pair.b.corpus
    if one is not None and other is not None and one.fingerprint != other.fingerprint:
        # the documents show how the corpora differ, where rows have only a fingerprint
        raise QsaeError(
            f"{pair.name}: another corpus: {_described(one)}; {_described(other)}; measure both with the "
            "same --corpus, --tokens, --sequence-length and --batch-size"
        )
    whole = read(pair.a.rows), read(pair.b.rows)
    a, b = on_common_sequences(*whole)
    try:
        check_comparable(a, b, wanted)
    except QsaeError as error:
        raise QsaeError(f"{pair.name}: {error}") from None
    found = comparison.differences(a, b, wanted, how)
    if not found:
        names = ", ".join(metric.key for metric in wanted)
        raise QsaeError(f"{pair.name}: {names}: not measured in both{_layers_note(a, b)}")
    documents = None if a.rows.documents is None else document_count(a.rows)
    return Compared(
        pair, len(a.rows), documents, a.rows.tokens, found,
        list(_notes(pair, whole, (a, b), wanted, found)),
    )  # fmt: skip


def _described(corpus: CorpusRecord) -> str:
    return (
        f"{corpus.name} with {corpus.sequences} sequences of {corpus.sequence_length} in batches of "
        f"{corpus.batch_size} (fingerprint {corpus.fingerprint[:8]})"
    )


def _notes(
    pair: Pair,
    whole: tuple[Measurement, Measurement],
    common: tuple[Measurement, Measurement],
    wanted: Sequence[Metric],
    found: Sequence[Difference],
) -> Iterator[str]:
    """Yield what a reader has to know about a pair; ``common`` is reduced to the sequences of both."""
    a, b = common
    sizes = [len(one.rows) for one in whole]
    if sizes[0] != sizes[1]:  # a gate of one of the two was undecided
        yield (
            f"A was measured on {sizes[0]} sequences and B on {sizes[1]}: compared on the first "
            f"{len(a.rows)}, which both saw; metrics of single features can't be, and the table above "
            "has each on its own"
        )
    if any(metric.scope == "layer" for metric in wanted) and (layers := _layers_note(a, b)):
        yield layers.lstrip("; ")
    have = {(d.metric, d.layer) for d in found}
    for metric in wanted:
        places = [None] if metric.scope == "cell" else common_layers(a, b)
        if missing := [place for place in places if (metric.key, place) not in have]:
            where = "" if missing == [None] else f" at layer {', '.join(map(str, missing))}"
            yield f"{metric.key}: not measured in both{where}"
    machines = [
        [side.run.document.environment.get(key) for key in ("cpu", "threads", "gpus")]
        for side in (pair.a, pair.b)
    ]
    if machines[0] != machines[1]:
        yield "A and B ran on different machines: their times and memory say little about each other"


def _layers_note(a: Measurement, b: Measurement) -> str:
    if a.layers.keys() == b.layers.keys():
        return ""
    in_a, in_b = (", ".join(map(str, one.layers)) or "none" for one in (a, b))
    common = ", ".join(map(str, common_layers(a, b))) or "none"
    return f"; layers of A: {in_a}, of B: {in_b}, of both: {common}"


def _run_overview(run: StoredRun, model: str | None) -> list[tuple[str, list[tuple[str, RunCell]]]]:
    """Return the measured cells of a run, by model."""
    shown: dict[str, list[tuple[str, RunCell]]] = {}
    for (name, quantization), cell in run.cells(model).items():
        if cell.has_values:
            shown.setdefault(name, []).append((quantization, RunCell(run, cell)))
    if run.document.synthetic or not shown:
        why = "has random weights (--synthetic)" if run.document.synthetic else "holds no measured cell"
        raise QsaeError(f"{run.folder.name} {why}: there is no quality to compare; see qsae-bench show")
    return list(shown.items())


def _overview_of_two(compared: Sequence[Compared]) -> list[tuple[str, list[tuple[str, RunCell]]]]:
    """Return the cells of two runs that were compared, marked A and B, by model."""
    shown: dict[str, dict[str, RunCell]] = {}
    for one in compared:
        for letter, side in (("A", one.pair.a), ("B", one.pair.b)):
            cells = shown.setdefault(side.cell.model, {})
            cells[f"{side.cell.quantization} ({letter})"] = side
    return [(model, list(sides.items())) for model, sides in shown.items()]
