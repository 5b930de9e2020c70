"""Turn this package's errors and failing gates into outcomes of tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import pytest

from qsae_bench.errors import CannotRun, Invalid, QsaeError, plain
from qsae_bench.gate.exit_status import INVALID_CELL, NOT_MEASURED, STATUS
from qsae_bench.gate.verdict import GateFailure


@contextlib.contextmanager
def outcomes(node: pytest.Item | pytest.Collector, strict: bool) -> Iterator[None]:
    """Turn our errors into a test's outcome: a failure, or a skip (an error with ``--strict``)."""
    __tracebackhide__ = True
    status, prefix, details = NOT_MEASURED, "", ""
    try:
        yield
        return
    except CannotRun as error:
        message, prefix = str(error), "--strict: "
    except Invalid as error:
        message, status = str(error), INVALID_CELL
    except QsaeError as error:
        message, details = str(error), error.details
    # outside the handlers: what is raised there would keep the frames, and so the tensors, alive
    if prefix and not strict:
        pytest.skip(plain(message))
    if isinstance(node, pytest.Item):  # a fixture of a wider scope has no report of its own
        node.user_properties.append((STATUS, status))
    lines = [f"{prefix}{message}", *details.split("\n")]
    raise pytest.fail.Exception("\n".join(map(plain, lines)).rstrip(), pytrace=False) from None


def fail(item: pytest.Item, failure: GateFailure) -> NoReturn:
    """Fail a test on its gate; note the verdict for JUnit and the exit status."""
    __tracebackhide__ = True
    item.user_properties.append((STATUS, failure.status))
    pytest.fail(failure.message, pytrace=False)
