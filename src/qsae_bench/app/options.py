"""``--resume``, ``--isolate`` and ``--isolate-timeout``: what they are called, and what can't be."""

from __future__ import annotations

from typing import Any

import pytest

from qsae_bench.run.workers.options import WorkerOptions

NEWEST = "the newest"
"""what ``--resume`` without a run means"""

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--resume",
        {
            "nargs": "?", "default": None, "const": NEWEST, "metavar": "RUN",
            "help": "go on with a run that was killed: an id, a folder, or the newest that can be",
        },
    ),
    (
        "--isolate",
        {"action": "store_true", "help": "each cell in a process of its own: a crash is that cell's alone"},
    ),
    (
        "--isolate-timeout",
        {
            "type": float, "default": None, "metavar": "SECONDS",
            "help": "with --isolate or --workers: end a cell that takes longer",
        },
    ),
)  # fmt: skip


def check(isolate: bool, timeout_seconds: float | None, executor: WorkerOptions) -> None:
    if isolate and not executor.is_here:
        raise pytest.UsageError("--isolate: workers are processes of their own: leave it out")
    if timeout_seconds is None:
        return
    if executor.kind == "ray":
        raise pytest.UsageError("--isolate-timeout: Ray may let a cell wait for its turn for any time")
    if not isolate and executor.is_here:
        raise pytest.UsageError(
            "--isolate-timeout: without --isolate or --workers no cell has a process to be ended"
        )
    if not timeout_seconds > 0:  # NaN is not
        raise pytest.UsageError(f"--isolate-timeout {timeout_seconds:g}: must be more than 0 seconds")
