"""Build the pieces that a run's report and its job summary share."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from qsae_bench.gate.accepted import WORSE
from qsae_bench.gate.verdict import FAILING, WORST_FIRST
from qsae_bench.metrics import METRICS
from qsae_bench.report.blocks import Block, Code, Content, Heading, Items, Mark, Paragraph, Row, Table
from qsae_bench.report.notes import change, notes
from qsae_bench.report.number_format import formatted, in_sequences, ranged
from qsae_bench.report.terminal import verdict_word
from qsae_bench.results.document import CellRecord, FailedTest, RunDocument, Value, VerdictRecord

UNMEASURED_STATUSES = ("skipped", "oom", "error", "crashed")
"""statuses of a cell that was asked for and not measured"""

WORDS = {"oom": "out of memory", "timed": "timed only"}


def invalid(document: RunDocument) -> list[CellRecord]:
    """Return the cells that are invalid without a verdict that says so."""
    measured = (cell for cell in document.cells if cell.status == "measured")
    return [cell for cell in measured if cell.reason and not cell.verdicts]


def about(document: RunDocument) -> Paragraph:
    """Say when a run took place, and on what."""
    gpus = Counter(str(gpu.get("name")) for gpu in document.environment.get("gpus") or [])
    on = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in gpus.items())
    on = on or document.environment.get("cpu") or "a CPU"
    return Paragraph(f"Run {document.run_id}, {document.started} to {document.finished}, on {on}.")


def texts(document: RunDocument) -> Iterator[Block]:
    """Say on how many tokens, sequences and documents the models were measured, a line for each corpus."""
    found: dict[str, list[str]] = {}
    for model, corpus in document.corpus.items():
        counts = in_sequences(corpus.sequences, corpus.documents, corpus.is_one_document)
        found.setdefault(f"{corpus.tokens:,} tokens of {corpus.name}{counts}", []).append(model)
    for size, models in found.items():
        yield Paragraph(f"{size}: {', '.join(models)}.")


def word(cell: CellRecord) -> str:
    """Return a cell's gravest verdict, or what became of it."""
    if cell.status == "measured":
        return verdict_word(cell)
    return WORDS.get(cell.status, cell.status)


def matrix(document: RunDocument, anchors: dict[str, str] | None = None) -> Iterator[Block]:
    """Yield models by quantizations, each cell's gravest verdict.

    Args:
        anchors: model -> what says more about it.
    """
    columns: dict[str, Content] = {cell.quantization: "" for cell in document.cells}
    head = "model" if "model" not in columns else "model's name"
    rows: dict[str, dict[str, Content]] = {}
    for cell in document.cells:
        href = (anchors or {}).get(cell.model, "")
        row = rows.setdefault(cell.model, {head: cell.model, **columns})
        row[cell.quantization] = Mark(word(cell), href)
    if rows:
        yield Table(list(rows.values()), "Models by quantizations: each cell's gravest verdict")


def failed(document: RunDocument, most: int) -> Iterator[Block]:
    """Yield a row for each gate that needs a look, then what its numbers don't say; then what got worse."""
    yield from _failed_gates(document, most)
    yield from _worse_than_accepted(document, most)


def _worse_than_accepted(document: RunDocument, most: int) -> Iterator[Block]:
    """Yield a row for each metric in which a cell is worse than in its accepted run, and what moved."""
    cells = [(cell, cell.accepted) for cell in document.cells if cell.accepted and cell.accepted.worse]
    rows: list[Row] = [
        {
            "cell": cell.label + ("" if one.layer is None else f" layer {one.layer}"),
            "metric": one.metric, "verdict": Mark(WORSE), "accepted": f"{one.accepted:.4g}",
            "now": f"{one.now:.4g}", "change": formatted(change(one), "+.3g±"), "Holm p": f"{one.p:.2g}",
            "accepted run": found.run,
        }
        for cell, found in cells
        for one in found.worse
    ]  # fmt: skip
    if not rows:
        return
    yield Heading("Worse than accepted")
    yield Table(rows[:most], "Metrics that are worse than in the last accepted run, on the same tokens")
    if len(rows) > most:
        yield Paragraph(f"And {len(rows) - most} more.")
    yield Items([f"{cell.label}: moved: {found.moved}" for cell, found in cells[:most]])


def _failed_gates(document: RunDocument, most: int) -> Iterator[Block]:
    """Yield a row for each gate that needs a look, then what its numbers don't say."""
    shown = FAILING | {"suspicious"}
    found = [(cell, v) for cell in document.cells for v in cell.verdicts if v.status in shown]
    found.sort(key=lambda one: WORST_FIRST.index(one[1].status))
    unjudged = invalid(document)
    if not found and not unjudged:
        return
    yield Heading("What failed")
    if found:
        rows = [verdict_row(cell, v) for cell, v in found[:most]]
        yield Table(rows, "Gates that failed, and suspicious ones")
    if len(found) > most:
        yield Paragraph(f"And {len(found) - most} more.")
    where: dict[str, list[str]] = {}
    for cell, v in found:
        for text in filter(None, (v.reason, v.attribution and f"moved: {v.attribution}")):
            where.setdefault(text, []).append(f"{_place(cell, v)} {v.metric}")
    for cell in unjudged:
        where.setdefault(cell.reason, []).append(cell.label)
    if where:
        yield Items([f"{_few(names)}: {text}" for text, names in list(where.items())[:most]])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def verdict_row(cell: CellRecord, verdict: VerdictRecord) -> Row:
    """Return a verdict with what was measured and the threshold."""
    layer = cell.layers.get(str(verdict.layer))
    scope = layer.metrics if layer else cell.metrics
    return {
        "cell": _place(cell, verdict), "metric": verdict.metric, "verdict": Mark(verdict.status),
        "measured": _measured(verdict.metric, scope.get(verdict.metric), verdict.judged),
        "threshold": verdict.limit + (" (provisional)" if verdict.provisional else ""),
        "rests on": verdict.source or "–", "tokens": f"{verdict.tokens:,}",
    }  # fmt: skip


def _measured(metric: str, value: Value | None, judged: Value | None) -> str:
    """Write the value, its unit, and the interval that decided."""
    shown = value or judged
    if shown is None or shown.value is None:
        return formatted(shown, "")
    unit = METRICS[metric].unit if metric in METRICS else ""
    number, _, interval = ranged(shown, judged or shown).partition(" (")
    return " ".join(filter(None, (number, unit, interval and f"({interval}")))


def _place(cell: CellRecord, verdict: VerdictRecord) -> str:
    return cell.label + ("" if verdict.layer is None else f" layer {verdict.layer}")


def other_tests(found: Sequence[FailedTest], most: int) -> Iterator[Block]:
    """Yield failing tests that no gate decided: crashes, assertions, what this machine lacks."""
    if not found:
        return
    yield Heading("Other failing tests")
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    yield Items([*(f"{one.test}: {one.said}" for one in found[:most]), *more])


def not_measured(document: RunDocument) -> Iterator[Block]:
    """Yield the cells that were asked for and not measured, one row for each reason."""
    gone: dict[tuple[str, str, str], list[str]] = {}
    for cell in document.cells:
        if cell.status in UNMEASURED_STATUSES:
            gone.setdefault((cell.model, cell.status, cell.reason), []).append(cell.quantization)
    if gone:
        yield Heading("Not measured")
        yield Table(
            [
                {
                    "model": model, "quantizations": ", ".join(names),
                    "status": Mark(WORDS.get(status, status)), "why": reason,
                }
                for (model, status, reason), names in gone.items()
            ],
            "Cells that were asked for and not measured",
        )  # fmt: skip


def tokens(document: RunDocument, most: int) -> Iterator[Block]:
    """Say how many were used and saved, where a cell could have been looked at again."""
    cells = [cell for cell in document.cells if cell.planned_tokens > 0]
    if not cells:
        return
    used, planned = (sum(getattr(c, key) for c in cells) for key in ("tokens", "planned_tokens"))
    saved = f", {100 * (1 - used / planned):.0f}% saved by deciding early" if used < planned else ""
    yield Heading("Tokens")
    yield Paragraph(f"{used:,} of at most {planned:,} predicted{saved}.")
    rows = [
            {
                "cell": cell.label, "tokens": f"{cell.tokens:,}", "at most": f"{cell.planned_tokens:,}",
                "looks": str(cell.looks),
            }
        for cell in cells[:most]
        if cell.looks > 1 or cell.tokens < cell.planned_tokens
    ]  # fmt: skip
    if rows:
        yield Table(rows, "Cells that were decided early, or looked at again")


def noted(document: RunDocument, most: int) -> Iterator[Block]:
    """Yield the notes on all models."""
    by_model: dict[str, list[CellRecord]] = {}
    for cell in document.cells:
        if cell.status == "measured":
            by_model.setdefault(cell.model, []).append(cell)
    found = [f"{model}: {note}" for model, cells in by_model.items() for note in notes(cells, document)]
    if found:
        yield from (Heading("Notes"), Items(found[:most]))


def environment_line(document: RunDocument) -> Iterator[Block]:
    """Name the versions of what the run rested on."""
    here = document.environment
    plain = ("python", "system", "machine", "cpu", "driver", "cuda", "executor")
    rows = {key: str(here[key]) for key in plain if here.get(key)} | dict(here.get("versions") or {})
    if rows:
        yield Heading("Environment")
        yield Paragraph(f"{', '.join(f'{key} {version}' for key, version in rows.items())}.")


def commands(document: RunDocument, home: str) -> Iterator[Block]:
    """Yield the command that was run, and one that shows more."""
    red = next((cell for cell in document.cells if any(v.status in FAILING for v in cell.verdicts)), None)
    more = ["qsae-bench", "show", *([home] if home else []), *(["-k", red.label] if red else [])]
    yield from (Heading("Again, and deeper"), Code([document.command, shlex.join(more)]))
