"""One page for the morning after, as GitHub's markdown: what is red and why, before anything else."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from qsae_bench import exitstatus
from qsae_bench.failures import Failures
from qsae_bench.gate import FAILING
from qsae_bench.metrics import METRICS
from qsae_bench.report.markdown import escaped, fenced, table
from qsae_bench.report.notes import notes
from qsae_bench.report.terminal import verdict_word
from qsae_bench.results import CellRecord, RunDocument, Value, VerdictRecord

MOST_ROWS = 60
"""of a table: it is one page. The run document has them all"""

GONE = ("skipped", "oom", "error", "crashed")
"""statuses of a cell that was asked for and not measured"""


def page(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str] = (), home: str = ""
) -> Iterator[str]:
    """The page's lines.

    Args:
        document: of the run; None where no cell was even asked for.
        lost: what could not be kept, and why.
        home: the run's folder, for the commands that show more.
    """
    yield f"## qsae-bench: {escaped(banner(document, status, failures, lost))}"
    yield ""
    for line in lost:
        yield from (f"**Not kept:** {escaped(line)}", "")
    if document is None:
        return
    yield escaped(_about(document))
    yield ""
    yield from _matrix(document)
    yield from _failed(document)
    yield from _others(failures)
    yield from _not_measured(document)
    yield from _tokens(document)
    yield from _warnings(document)
    yield from _environment(document)
    yield from _commands(document, home)


def banner(document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str] = ()) -> str:
    """The whole night in a line; the terminal shows it too."""
    gates = [v for cell in document.cells for v in cell.verdicts] if document else []
    parts = []
    if failures.gates:
        tests = [one for one in failures.found if one.gates]
        words = Counter(word for one in tests for word in one.gates)
        each = ", ".join(f"{count} {word}" for word, count in words.items())
        parts.append(f"{_count(failures.gates, 'gate')} failed in {_count(len(tests), 'test')}: {each}")
    if failures.others:
        parts.append(f"{_count(len(failures.others), 'other test')} failed")
    if not parts and gates:
        parts.append(f"{_count(sum(v.status not in FAILING for v in gates), 'gate')} passed")
    suspicious = sum(v.status == "suspicious" for v in gates)
    if suspicious and not failures.gates:
        parts.append(f"{suspicious} of them suspicious")
    if lost:
        parts.append("not kept")
    if status == exitstatus.NOTHING_MEASURED and not failures.found and not lost:
        parts = ["only references were measured, and no gate" if gates else "nothing was measured"]
    word = {
        exitstatus.PASSED: "green", exitstatus.REGRESSION: "red",
        exitstatus.NOTHING_MEASURED: "red, but no regression",
    }.get(status, "stopped")  # fmt: skip
    return f"{word}{': ' if parts else ''}{'; '.join(parts)} (exit status {status})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _about(document: RunDocument) -> str:
    gpus = Counter(str(gpu.get("name")) for gpu in document.environment.get("gpus") or [])
    on = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in gpus.items())
    on = on or document.environment.get("cpu") or "a CPU"
    return f"Run {document.run_id}, {document.started} to {document.finished}, on {on}."


def _matrix(document: RunDocument) -> Iterator[str]:
    """Models by quantizations, each cell's gravest verdict."""
    columns = dict.fromkeys((cell.quantization for cell in document.cells), "")
    rows: dict[str, dict[str, str]] = {}
    for cell in document.cells:
        rows.setdefault(cell.model, {"model": cell.model} | columns)[cell.quantization] = _word(cell)
    if rows:
        yield from table(list(rows.values()))


def _word(cell: CellRecord) -> str:
    if cell.status == "measured":
        return verdict_word(cell)
    return {"oom": "out of memory", "timed": "timed only"}.get(cell.status, cell.status)


def _failed(document: RunDocument) -> Iterator[str]:
    """A row a gate that needs a look, then what its numbers don't say."""
    found = [
        (cell, v)
        for cell in document.cells
        for v in cell.verdicts
        if v.status in FAILING or v.status == "suspicious"
    ]
    broken = [
        cell for cell in document.cells if cell.status == "measured" and cell.reason and not cell.verdicts
    ]
    if not found and not broken:
        return
    yield from ("### What failed", "")
    if found:
        yield from table([_verdict_row(cell, v) for cell, v in found[:MOST_ROWS]])
    if len(found) > MOST_ROWS:
        yield from (f"And {len(found) - MOST_ROWS} more.", "")
    said: dict[str, list[str]] = {}
    for cell, v in found:
        for text in filter(None, (v.reason, v.attribution and f"moved: {v.attribution}")):
            said.setdefault(text, []).append(f"{_name(cell)}{_layer(v)} {v.metric}")
    for cell in broken:
        said.setdefault(cell.reason, []).append(_name(cell))
    for text, names in list(said.items())[:MOST_ROWS]:
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"- {escaped(', '.join(names[:3]) + others)}: {escaped(text)}"
    if said:
        yield ""


def _verdict_row(cell: CellRecord, verdict: VerdictRecord) -> dict[str, str]:
    scope = cell.metrics
    if verdict.layer is not None and str(verdict.layer) in cell.layers:
        scope = cell.layers[str(verdict.layer)].metrics
    bound = "none" if verdict.bound is None else f"{verdict.side} {verdict.bound:g}"
    return {
        "cell": _name(cell) + _layer(verdict),
        "metric": verdict.metric,
        "verdict": verdict.status,
        "measured": _measured(verdict.metric, scope.get(verdict.metric), verdict.judged),
        "threshold": bound + (" (provisional)" if verdict.provisional else ""),
        "rests on": verdict.source or "–",
        "tokens": f"{verdict.tokens:,}",
    }


def _measured(metric: str, value: Value | None, judged: Value | None) -> str:
    """The value, its unit, and the interval that decided."""
    shown = value or judged
    if shown is None or shown.value is None:
        return "not finite" if shown is not None else "–"
    unit = METRICS[metric].unit if metric in METRICS else ""
    text, decided = f"{shown.value:.4g} {unit}".rstrip(), judged or shown
    if decided.low is None or decided.high is None:
        return text
    return f"{text} ({decided.low:.4g} to {decided.high:.4g})"


def _name(cell: CellRecord) -> str:
    return f"{cell.model}-{cell.quantization}"


def _layer(verdict: VerdictRecord) -> str:
    return "" if verdict.layer is None else f" layer {verdict.layer}"


def _others(failures: Failures) -> Iterator[str]:
    """Failing tests that no gate decided: crashes, assertions, what this machine lacks."""
    if not failures.others:
        return
    yield from ("### Other failing tests", "")
    for one in failures.others[:MOST_ROWS]:
        yield f"- {escaped(one.test)}: {escaped(one.said)}"
    if len(failures.others) > MOST_ROWS:
        yield f"- and {len(failures.others) - MOST_ROWS} more"
    yield ""


def _not_measured(document: RunDocument) -> Iterator[str]:
    gone: dict[tuple[str, str, str], list[str]] = {}
    for cell in document.cells:
        if cell.status in GONE:
            gone.setdefault((cell.model, cell.status, cell.reason), []).append(cell.quantization)
    if gone:
        yield from ("### Not measured", "")
        yield from table(
            [
                {"model": model, "quantizations": ", ".join(names), "status": status, "why": reason}
                for (model, status, reason), names in gone.items()
            ]
        )


def _tokens(document: RunDocument) -> Iterator[str]:
    """Used and saved, where a cell could have been looked at again."""
    cells = [cell for cell in document.cells if cell.planned_tokens > 0]
    if not cells:
        return
    used, planned = (sum(getattr(c, key) for c in cells) for key in ("tokens", "planned_tokens"))
    yield from ("### Tokens", "")
    saved = f", {100 * (1 - used / planned):.0f}% saved by deciding early" if used < planned else ""
    yield from (f"{used:,} of at most {planned:,} predicted{saved}.", "")
    rows = [
            {
                "cell": _name(cell), "tokens": f"{cell.tokens:,}", "at most": f"{cell.planned_tokens:,}",
                "looks": str(cell.looks),
            }
        for cell in cells[:MOST_ROWS]
        if cell.looks > 1 or cell.tokens < cell.planned_tokens
    ]  # fmt: skip
    if rows:
        yield from table(rows)


def _warnings(document: RunDocument) -> Iterator[str]:
    by_model = dict.fromkeys(cell.model for cell in document.cells)
    found = [
        f"{model}: {note}"
        for model in by_model
        for note in notes([c for c in document.cells if c.model == model and c.status == "measured"])
    ]
    if found:
        yield from ("### Notes", "", *(f"- {escaped(line)}" for line in found[:MOST_ROWS]), "")


def _environment(document: RunDocument) -> Iterator[str]:
    here = document.environment
    plain = ("python", "system", "machine", "cpu", "driver", "cuda")
    rows = {key: str(here[key]) for key in plain if here.get(key)} | dict(here.get("versions") or {})
    if rows:
        yield from ("### Environment", "")
        yield f"{escaped(', '.join(f'{name} {version}' for name, version in rows.items()))}."
        yield ""


def _commands(document: RunDocument, home: str) -> Iterator[str]:
    """What was run, and what shows more."""
    yield from ("### Again, and deeper", "")
    red = next((cell for cell in document.cells if any(v.status in FAILING for v in cell.verdicts)), None)
    more = ["qsae-bench", "show", *([home] if home else []), *(["-k", _name(red)] if red else [])]
    yield from fenced([document.command, shlex.join(more)])
