"""Decide the exit status of ``pytest benchmarks`` from what failed and what was stored. Pure.

A failing test's report carries in its user properties what kind of failure it was, so that a stored report
that is read again counts the same, and JUnit shows it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, Literal, get_args

from qsae_bench.gate.verdict import Status

PASSED = 0
REGRESSION = 1
USAGE_ERROR = 2
NOTHING_MEASURED = 3

NO_TESTS = 5
"""pytest's own; 0 and 1 mean the same there and here, and 2 is an interrupted run"""

Kind = Literal["regression", "invalid", "not measured", "other"]
"""of a failure. ``other``: a failing assertion of a benchmark, an unexpected exception"""

STATUS = "qsae_status"
"""user property: the status of a gate's verdict, or one of the two that no gate has"""

NOT_MEASURED = "not measured"
"""value of STATUS where a cell crashed, or this machine lacks what it needs and --strict is on"""

INVALID_CELL = "invalid cell"
"""value of STATUS where what was measured is broken, and no gate was asked"""

UNMEASURED: frozenset[Kind] = frozenset({"invalid", "not measured"})
"""kinds that show nothing about the quantized model: a run with only these is no regression"""


def kinds_of(properties: Iterable[tuple[str, Any]]) -> frozenset[Kind]:
    """Return the kinds of one failing report's failures, from its user properties."""
    known: dict[Any, Kind] = dict.fromkeys(get_args(Status), "regression")
    known |= {"invalid": "invalid", INVALID_CELL: "invalid", NOT_MEASURED: "not measured"}
    statuses = {value for key, value in properties if key == STATUS}
    return frozenset(known.get(status, "other") for status in statuses) or frozenset({"other"})


def exit_status(
    pytest_status: int,
    kinds: Set[Kind],
    *,
    selected: bool = True,
    measured: bool = True,
    stored: bool = True,
) -> int:
    """Return the exit status of the process.

    Args:
        pytest_status: what pytest would return.
        kinds: of every failure of the run.
        selected: cells were selected to be measured, as with ``--collect-only`` they are not.
        measured: anything was. Green because nothing ran is not green.
        stored: the run and the history could be written.
    """
    if pytest_status == REGRESSION:
        return NOTHING_MEASURED if kinds and kinds <= UNMEASURED else REGRESSION
    if pytest_status in (PASSED, NO_TESTS) and ((selected and not measured) or not stored):
        return NOTHING_MEASURED
    return pytest_status
