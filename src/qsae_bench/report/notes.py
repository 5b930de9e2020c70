"""Write the sentences under the tables: what the numbers alone would let a reader miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qsae_bench.errors import plain
from qsae_bench.gate.sanity import UNEXPLAINED, signs_of_ruin
from qsae_bench.metrics import version_difference
from qsae_bench.results.accepted_record import WorseRecord
from qsae_bench.results.cell_facts import SHARED_DEVICE, SinksRecord
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import CellRecord, RunDocument, Value, metrics_at
from qsae_bench.stats.sequential import SHOWN_DOCUMENTS

FVU_DEFINITIONS = ("fvu", "fvu_scalar", "fvu_scalar_bos")

UNDECLARED_BITS = 16
"""a simulated quantization that takes so many has not said what a packed form would store"""
WRONG_MEAN_GAIN = 0.0075
"""quantizations of the registry have up to 0.0056 on the embedded model (FP4), whose codebooks shrink"""
WRONG_GAIN = 0.1
"""no quantization of the registry comes near it: 0.02 at 3 bits on the embedded model"""

LEAST_OF_DECLARED, MOST_OF_DECLARED = 0.9, 1.2
"""share of the declared bits that is stored. A bit less of 8 is 0.88; scales in float32 instead of
bfloat16, as on a CPU, make 1.14 of HQQ's 3 bits"""

DISAGREE = 2.0
"""relative drifts of the two FVU definitions further apart than this factor are worth a sentence"""


def notes(cells: list[CellRecord], document: RunDocument) -> Iterator[str]:
    """Yield notes on the cells of one model."""
    reference = next((cell for cell in cells if cell.is_reference), None)
    if difference := version_difference(document.metrics_version):
        yield f"measured with {difference}"
    if (corpus := document.corpus.get(cells[0].model)) is not None:
        yield from _corpus(corpus)
    for without, names in by_what_is_left_out({cell.quantization: cell for cell in cells}).items():
        quality = f"the weights' rounding only; {without}" if without else "quality is real"
        yield (
            f"* {', '.join(names)}: simulated, rounded values are kept as floats: {quality}; speed "
            "and memory are not the quantization's"
        )
    if names := [cell.quantization for cell in cells if cell.shared_device]:
        yield f"† {', '.join(names)}: load and speeds: {SHARED_DEVICE}; --workers 1 takes a device alone"
    for cell in cells:
        if cell.status == "measured" and cell.reason:
            yield f"{cell.quantization} is invalid: {cell.reason}"
        if said := ruin(cell):
            yield f"{cell.quantization} {said}, whatever was judged"
        for verdict in cell.verdicts:
            if verdict.status == "suspicious":
                where = "" if verdict.layer is None else f" of layer {verdict.layer}"
                yield f"{cell.quantization}: {verdict.metric}{where} is suspicious: {verdict.reason}"
        yield from _accepted(cell)
        yield from _general(cell)
        yield from _weights(cell)
        yield from cell.warnings
        yield from _sinks(cell)
        if cell is not reference and reference is not None:
            yield from _definitions_disagree(cell, reference)
        if cell.still_moving:
            yield (
                f"{cell.quantization}: {', '.join(cell.still_moving)} still moved by more than the "
                "interval over the second half of the tokens: measure more with --tokens"
            )
    if reference is not None and reference.noise_floor is not None:
        yield from _noise_floors(cells, reference)


def by_what_is_left_out(cells: Mapping[str, CellRecord]) -> dict[str, list[str]]:
    """Return the names of simulated cells by what their simulation leaves out, "" for nothing."""
    found: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if cell.quantized is not None and cell.simulated:
            found.setdefault(plain(cell.quantized.without), []).append(name)
    return found


def _accepted(cell: CellRecord) -> Iterator[str]:
    """Say in what a cell is worse than in its accepted run, or why that can't be told."""
    found = cell.accepted
    if found is not None and found.said:
        yield f"{cell.quantization}: {found.said}; moved: {found.moved}"
    elif found is not None and found.run and found.not_compared:
        yield f"{cell.quantization}: {found.not_compared}"


def _corpus(corpus: CorpusRecord) -> Iterator[str]:
    """Say what of a text makes its sequences count for less than their number."""
    if corpus.is_one_document:
        yield (
            "its text is one document: pieces of one document count as documents, though they resemble "
            "each other more than documents do: intervals may be too narrow"
        )
    if corpus.control_tokens:
        yield (
            f"{corpus.control_tokens:,} tokens of its text are control tokens to the tokenizer (unknown "
            "words, or an ordinary word that it uses as one): every metric leaves them out"
        )
    if corpus.documents is not None and corpus.documents < SHOWN_DOCUMENTS:
        yield (
            f"{corpus.documents:,} documents are fewer than the {SHOWN_DOCUMENTS} from which on a gate of "
            "KLD, which is skewed, has been shown to err as rarely as it says: raise --tokens"
        )
    if corpus.dropped_repeats:
        yield f"{corpus.dropped_repeats:,} sequences were left out: each equals one that was taken"


def ruin(cell: CellRecord) -> str:
    """Say what shows that a cell is no working model, or that its SAE explains nothing; '' if nothing."""
    if cell.is_reference:
        layers = {layer: found.metrics.get("fvu") for layer, found in cell.layers.items()}
        numbers = {layer: fvu.value for layer, fvu in layers.items() if fvu and fvu.value is not None}
        dead = [f"fvu {fvu:.4g} at layer {layer}" for layer, fvu in numbers.items() if fvu >= UNEXPLAINED]
        return f"is not explained by its SAE: {', '.join(dead)}" if dead else ""
    values = {key: value.value for key, value in cell.metrics.items() if value.value is not None}
    found = signs_of_ruin(values)
    return f"is no working model: {', '.join(found)}" if found else ""


def _general(cell: CellRecord) -> Iterator[str]:
    """Name the bounds that stand in for others: for those of this hardware, or of this text."""
    for what, attribute in (
        ("general thresholds", "fallback"), ("thresholds measured on other text", "other_text"),
    ):  # fmt: skip
        found: dict[str, list[str]] = {}
        for verdict in cell.verdicts:
            if why := getattr(verdict, attribute):
                found.setdefault(why, []).append(verdict.metric)
        for why, metrics in found.items():
            yield f"{cell.quantization}: {what}: {why}: {', '.join(dict.fromkeys(metrics))}"


def _weights(cell: CellRecord) -> Iterator[str]:
    """Say what a quantization left alone, and which matrix has a scale that can't be right."""
    found = cell.quantized
    if found is None:
        return
    if 0 < found.share < 1:
        yield (
            f"{cell.quantization}: {100 * found.share:.3g}% of the decoder's weights are quantized"
            f"{'; left as they were: ' if found.skipped else ''}{', '.join(found.skipped)}"
        )
    error = cell.metrics.get("weight_gain_error")
    wrong = found.worst_gain is not None and abs(found.worst_gain - 1) > WRONG_GAIN
    if wrong or (error is not None and error.value is not None and error.value > WRONG_MEAN_GAIN):
        mean = f"its matrices are on average {100 * error.value:.2g}% off" if error and error.value else ""
        most = f"{found.worst_matrix} most: {found.worst_gain:.4g} times the reference's"
        yield (
            f"{cell.quantization}: scales: {mean}{', ' if mean else ''}{most}. A wrong scale, another "
            "layer's weights, or scales moved into the norms (AWQ, SmoothQuant)"
        )
    bits = cell.metrics.get("bits_per_weight")
    if bits is None or bits.value is None:
        return
    if found.simulated and found.share and bits.value >= UNDECLARED_BITS:
        yield (
            f"{cell.quantization}: {bits.value:.2f} bits/w are the floats that it keeps; "
            "qsae_bench.models.backends.simulates says what a packed form would store"
        )
    elif (
        found.declared_bits and not LEAST_OF_DECLARED < bits.value / found.declared_bits < MOST_OF_DECLARED
    ):
        yield (
            f"{cell.quantization}: {bits.value:.2f} bits/w are stored, its registry entry has "
            f"stored_bits = {found.declared_bits:g}: another quantization than it names, or a wrong entry"
        )


def _sinks(cell: CellRecord) -> Iterator[str]:
    """Say which positions were left out, whether they changed, and what the sinks would have decided."""
    sinks = cell.sinks
    if sinks is None:
        return
    if cell.is_reference:
        yield (
            f"sinks: {_counted(sinks.reference, sinks)} ({1000 * sinks.reference / sinks.positions:.3g}‰) "
            f"have a residual of more than {sinks.multiple:.3g} times the median norm at layer "
            f"{sinks.layer}; residuals, SAEs and features are measured without them, in _all metrics with"
        )
        return
    changes = {"became a sink": sinks.gained, "stopped being one": sinks.lost}
    if found := [f"{_counted(count, sinks)} {what}" for what, count in changes.items() if count]:
        yield f"{cell.quantization}: {' and '.join(found)}; left out as the others are"
    for layer, record in cell.layers.items():
        found = []
        for key in ("perturbation_nsr", "fvu_drift"):
            ordinary, every = record.metrics.get(key), record.metrics.get(f"{key}_all")
            if ordinary is not None and every is not None and _tell_otherwise(ordinary, every):
                found.append(f"{key} {every.value:.3g}, not {ordinary.value:.3g}")
        if found:
            yield f"{cell.quantization}: layer {layer}: with sinks it would be {'; '.join(found)}"


def _counted(count: int, sinks: SinksRecord) -> str:
    return f"{count:,} of {sinks.positions:,} positions"


def _tell_otherwise(ordinary: Value, every: Value) -> bool:
    """Tell whether one of two values is significant alone, or they are significant and far apart."""
    if ordinary.value is None or every.value is None:
        return False
    shown = (_excludes_zero(ordinary), _excludes_zero(every))
    return shown[0] != shown[1] or (all(shown) and _apart(ordinary.value, every.value))


def _definitions_disagree(cell: CellRecord, reference: CellRecord) -> Iterator[str]:
    """Say where another definition's FVU disagrees with Gemma Scope's, in one sentence a cell."""
    found = []
    for layer, record in cell.layers.items():
        drift, other = record.metrics.get("fvu_drift"), (cell.beside or reference).layers.get(layer)
        if other is None or drift is None or not _excludes_zero(drift):
            continue
        moved = {key: relative(record.metrics.get(key), other.metrics.get(key)) for key in FVU_DEFINITIONS}
        if any(_apart(moved["fvu"], moved[key]) for key in FVU_DEFINITIONS[1:]):
            each = ", ".join(f"{k} {100 * m:+.2f}%" for k, m in moved.items() if m is not None)
            found.append(f"layer {layer}: {each}")
    if found:
        yield (
            f"{cell.quantization}: the definitions of FVU disagree about its drift, in percent of "
            f"itself ({'; '.join(found)}); the study's, fvu_scalar_bos, counts BOS, whose norm hides error"
        )


def _apart(centred: float | None, other: float | None) -> bool:
    """Tell whether two changes have other signs, or are further apart than a factor."""
    if centred is None or other is None:
        return False
    return centred * other <= 0 or not 1 / DISAGREE <= abs(other / centred) <= DISAGREE


def _noise_floors(cells: list[CellRecord], reference: CellRecord) -> Iterator[str]:
    """Say how much numerics alone change each metric that was judged."""
    assert reference.noise_floor is not None
    found: dict[tuple[str, int | None], str] = {}
    for cell in cells:
        for verdict in cell.verdicts:
            if verdict.bound is None:
                continue
            floor = metrics_at(reference.noise_floor, verdict.layer).get(verdict.metric)
            if floor is not None and floor.value is not None:
                where = "" if verdict.layer is None else f" (layer {verdict.layer})"
                key = (verdict.metric, verdict.layer)
                bounds = f"{cell.quantization} {verdict.limit}"
                head = f"{verdict.metric}{where}: noise floor {floor.value:.3g}; thresholds: "
                found[key] = f"{found[key]}, {bounds}" if key in found else head + bounds
    yield from found.values()


def _excludes_zero(value: Value) -> bool:
    return value.low is not None and value.high is not None and (value.low > 0 or value.high < 0)


def change(worse: WorseRecord) -> Value:
    """Return by how much a metric is worse than in the accepted run, with its interval."""
    return Value(value=worse.now - worse.accepted, low=worse.low, high=worse.high)


def relative(value: Value | None, reference: Value | None) -> float | None:
    """Return ``value / reference − 1``; None where either is missing or the reference is 0."""
    if value is None or reference is None or value.value is None or not reference.value:
        return None
    return value.value / reference.value - 1
