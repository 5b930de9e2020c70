"""What runs tasks: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Protocol

from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.run.workers.tasks import Task, TaskResult


class WorkerLost(Exception):
    """Raised when the worker or its node died, with how. Another worker may try the task."""


class TaskTimedOut(WorkerLost):
    """Raised when the worker was killed because its task took too long: it would elsewhere, too."""


class Engine(Protocol):
    """Runs tasks, several at a time."""

    places: int
    """how many tasks it can be given at once; a thread of the dispatcher waits for each"""
    about: str
    """for the run document, such as ``local, 2 workers, threads each: 1``"""

    @property
    def start_seconds(self) -> float:
        """Longest time until a new worker could take its first task, so far; 0 where it is not known."""

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        """Run a task at one of the places, and wait for its result.

        Raises:
            WorkerLost: its worker died.
        """

    def close(self) -> None:
        """Kill every worker, whatever it is doing. Tasks that run end with :class:`WorkerLost`."""
