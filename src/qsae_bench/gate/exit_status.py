"""The exit status of ``pytest benchmarks``, decided from what failed and what was kept. Pure.

A failing test's report carries in its user properties what kind of failure it was: so that a report that
was written down and is read again counts the same, and JUnit shows it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, Literal, get_args

from qsae_bench.gate.verdict import Status

PASSED = 0
REGRESSION = 1
USAGE = 2
NOTHING_MEASURED = 3

INTERNAL_ERROR, USAGE_ERROR, NO_TESTS = 3, 4, 5
"""pytest's own; 0 and 1 mean the same there and here, and 2 is an interrupted run"""

Kind = Literal["regression", "invalid", "not measured", "other"]
"""of a failure. ``other``: a failing assertion of a benchmark, an exception nobody expected"""

STATUS = "qsae_status"
"""user property: a verdict's word, or NOT_MEASURED"""

NOT_MEASURED = "not measured"
"""value of STATUS where a cell crashed, or this machine lacks what it needs and --strict is on"""

UNMEASURED: frozenset[Kind] = frozenset({"invalid", "not measured"})
"""kinds that say nothing about the quantized model: no night is a regression because of them"""


def kinds_of(properties: Iterable[tuple[str, Any]]) -> frozenset[Kind]:
    """The kinds of one failing report's failures, from its user properties."""
    words = {value for key, value in properties if key == STATUS}
    return frozenset(map(_kind, words)) or frozenset({"other"})


def _kind(word: object) -> Kind:
    if word == "invalid":
        return "invalid"
    if word == NOT_MEASURED:
        return "not measured"
    return "regression" if word in get_args(Status) else "other"


def exit_status(
    pytest_status: int, kinds: Set[Kind], *, looked: bool = True, measured: bool = True, kept: bool = True
) -> int:
    """What the process returns.

    Args:
        pytest_status: what pytest would return.
        kinds: of every failure of the run.
        looked: cells were selected to be measured, as with ``--collect-only`` they are not.
        measured: anything was. Green because nothing ran is not green.
        kept: the run and the history could be written.
    """
    if pytest_status == REGRESSION:
        return NOTHING_MEASURED if kinds and kinds <= UNMEASURED else REGRESSION
    if pytest_status in (PASSED, NO_TESTS) and ((looked and not measured) or not kept):
        return NOTHING_MEASURED
    return pytest_status
