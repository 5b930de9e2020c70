"""Where tasks run: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Protocol

from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.run.workers.tasks import Task, TaskResult


class Lost(Exception):
    """The worker died, or its node: says how. The task may be tried elsewhere."""


class Overdue(Lost):
    """The worker was ended because its task took too long: it would elsewhere, too."""


class Engine(Protocol):
    """Runs tasks, several at a time."""

    places: int
    """how many tasks it can be handed at once; a thread of the dispatcher waits for each"""
    keeps: bool
    """a place is a process that keeps its model's tokens and SAEs from one task to the next"""
    about: str
    """for the run document, such as ``local, 2 workers, threads each: 1``"""

    @property
    def start_seconds(self) -> float:
        """Until a new worker could take its first task, of those so far; 0 where that is not known."""

    def run(self, place: int, task: Task, reference: CellResult | QsaeError | None) -> TaskResult:
        """Do a task at one of the places, and wait for it.

        Raises:
            Lost: its worker died.
        """

    def close(self) -> None:
        """End every worker, whatever it is doing. Tasks that run are :class:`Lost`."""
