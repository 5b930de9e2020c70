"""Write a run's summary as GitHub's markdown: into the run's folder, and to GitHub's page of the job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qsae_bench.files import put
from qsae_bench.gate import exit_status as exitstatus
from qsae_bench.gate.accepted import WORSE
from qsae_bench.gate.verdict import FAILING
from qsae_bench.report import markdown, sections
from qsae_bench.report.blocks import Block, Heading, Paragraph, Table
from qsae_bench.report.notes import ruin
from qsae_bench.report.number_format import counted
from qsae_bench.results.document import FailedTest, RunDocument
from qsae_bench.results.failures import Failures

MOST_ROWS = 60
"""of a table: it is one page. The run document has them all"""

PAGE = "summary.md"

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""environment variable: the file whose content GitHub shows with the job"""

MOST_BYTES = 1 << 20
"""of that file: with more, GitHub shows nothing of it"""

CUT_NOTE = f"*Cut here, at what GitHub shows; the whole page is {PAGE} in the run's folder.*\n"


def page(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str] = (), home: str = ""
) -> Iterator[str]:
    """Yield the summary's lines: what is red and why comes first.

    Args:
        document: of the run; None where no cell was even asked for.
        lost: what could not be written, and why.
        home: the run's folder, for the commands that show more.
    """
    # a heading above each table says what it is
    blocks = _blocks(document, status, failures, lost, home)
    return markdown.lines(Table(one.rows) if isinstance(one, Table) else one for one in blocks)


def _blocks(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str], home: str
) -> Iterator[Block]:
    yield Heading(f"qsae-bench: {outcome_line(document, status, failures, lost)}", 2)
    yield from (Paragraph(line, lead="Not stored:") for line in lost)
    if document is None:
        return
    others = [FailedTest(test=one.test, said=one.reason) for one in failures.others]
    yield sections.about(document)
    yield from sections.texts(document)
    yield from sections.matrix(document)
    yield from sections.failed(document, MOST_ROWS)
    yield from sections.other_tests(others, MOST_ROWS)
    yield from sections.not_measured(document)
    yield from sections.tokens(document, MOST_ROWS)
    yield from sections.noted(document, MOST_ROWS)
    yield from sections.environment_line(document)
    yield from sections.commands(document, home)


def outcome_line(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str] = ()
) -> str:
    """Say in a line what came of the run; the terminal shows it too."""
    gates = [v for cell in document.cells for v in cell.verdicts] if document else []
    parts = []
    if failures.gates:
        each = ", ".join(f"{count} {word}" for word, count in failures.gates.items())
        parts.append(f"{counted(failures.gates.total(), 'gate')} failed: {each}")
    if failures.others:
        parts.append(f"{counted(len(failures.others), 'other test')} failed")
    if not parts and gates:
        passed = [v for v in gates if v.status not in FAILING]
        parts.append(f"{counted(len(passed), 'gate')} passed")
        if provisional := sum(v.provisional for v in passed):
            parts.append(f"{provisional} of {counted(len(passed), 'gate')} by provisional bounds")
    suspicious = sum(v.status == "suspicious" for v in gates)
    if suspicious and not failures.gates:
        parts.append(f"{suspicious} of them suspicious")
    worse = sum(cell.is_worse for cell in document.cells) if document else 0
    if worse and not failures.gates:
        parts.append(f"{counted(worse, 'cell')} {WORSE}")
    if gates and (bare := _unjudged_cells(document)):
        parts.append(f"no gate judged {', '.join(bare)}")
    if gates and not failures.gates and document is not None:
        parts += [f"{cell.label} {said}" for cell in document.cells if (said := ruin(cell))]
    if lost:
        parts.append("not stored")
    if status == exitstatus.NOTHING_MEASURED and not failures.found and not lost:
        parts = ["only references were measured, and no gate" if gates else "nothing was measured"]
    word = {
        exitstatus.PASSED: "green", exitstatus.REGRESSION: "red",
        exitstatus.NOTHING_MEASURED: "red, but no regression",
    }.get(status, "stopped")  # fmt: skip
    return f"{word}{': ' if parts else ''}{'; '.join(parts)} (exit status {status})"


def _unjudged_cells(document: RunDocument | None) -> list[str]:
    """Name the quantized cells that were measured and not held against any bound."""
    cells = document.cells if document else []
    return [c.label for c in cells if c.status == "measured" and not c.is_reference and not c.verdicts]


FALSE_ALARM = 2.5
"""percent of the runs in which a gate may fail although its true value lies on its bound"""


def chance_line(document: RunDocument | None) -> str:
    """Say in a line what the errors of single gates come to over the run; '' for fewer than two gates."""
    gates = [v for cell in document.cells for v in cell.verdicts] if document else []
    sampled = sum(v.judged is not None and v.judged.low is not None and v.bound is not None for v in gates)
    if sampled < 2:
        return ""
    return (
        f"each of {sampled} gates with an interval errs at most about {2 * FALSE_ALARM:g}% of the time, "
        "half of that by failing, and only where its true value is near its bound; were all of them on "
        f"their bounds, a false alarm would be at most {min(100.0, FALSE_ALARM * sampled):g}% likely"
    )


def write_page(page: str, folder: Path | None, environment: Mapping[str, str]) -> list[str]:
    """Write the page into the run's folder, if there is one, and append it to GitHub's file.

    A page that can't be written is no reason to fail a run that is stored.

    Returns:
        A line for each place that could not be written.
    """
    content = page.encode("utf-8", "replace")
    warnings = []
    if folder is not None:
        try:
            put(folder / PAGE, content)
        except OSError as error:
            warnings.append(f"{folder / PAGE}: can't be written: {error.strerror or error}")
    if step := environment.get(STEP_SUMMARY, ""):
        try:
            with Path(step).open("ab") as file:  # after what other commands of the step wrote
                file.write(fitting(content, MOST_BYTES - file.tell()))
        except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
            warnings.append(f"{STEP_SUMMARY}: can't be written: {getattr(error, 'strerror', '') or error}")
    return warnings


def fitting(content: bytes, room: int) -> bytes:
    """Return as many whole lines as there is room for, and a line that says so."""
    if len(content) <= room:
        return content
    start = content[: max(0, room - len(CUT_NOTE.encode()) - 1)]
    start = start[: start.rfind(b"\n") + 1]
    return start + b"\n" + CUT_NOTE.encode() if len(CUT_NOTE.encode()) < room else b""
