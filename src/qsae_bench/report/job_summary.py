"""One page for the morning after, as GitHub's markdown: what is red and why, before anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qsae_bench.gate import exit_status as exitstatus
from qsae_bench.gate.verdict import FAILING
from qsae_bench.report import markdown, sections
from qsae_bench.report.blocks import Block, Heading, Paragraph, Table
from qsae_bench.results.document import FailedTest, RunDocument
from qsae_bench.results.failures import Failures

MOST_ROWS = 60
"""of a table: it is one page. The run document has them all"""


def page(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str] = (), home: str = ""
) -> Iterator[str]:
    """The page's lines.

    Args:
        document: of the run; None where no cell was even asked for.
        lost: what could not be kept, and why.
        home: the run's folder, for the commands that show more.
    """
    # a heading above each table says what it is
    blocks = _blocks(document, status, failures, lost, home)
    return markdown.lines(Table(one.rows) if isinstance(one, Table) else one for one in blocks)


def _blocks(
    document: RunDocument | None, status: int, failures: Failures, lost: Sequence[str], home: str
) -> Iterator[Block]:
    yield Heading(f"qsae-bench: {banner(document, status, failures, lost)}", 2)
    yield from (Paragraph(line, lead="Not kept:") for line in lost)
    if document is None:
        return
    others = [FailedTest(test=one.test, said=one.reason) for one in failures.others]
    yield sections.about(document)
    yield from sections.matrix(document)
    yield from sections.failed(document, MOST_ROWS)
    yield from sections.other_tests(others, MOST_ROWS)
    yield from sections.not_measured(document)
    yield from sections.tokens(document, MOST_ROWS)
    yield from sections.noted(document, MOST_ROWS)
    yield from sections.environment(document)
    yield from sections.commands(document, home)


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
