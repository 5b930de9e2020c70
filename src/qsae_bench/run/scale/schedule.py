"""How long a run takes on G workers: what each cell costs, and the dispatcher's own schedule of them.

Two kinds of cells: a model's reference, and its quantized ones, which wait for its pass. One of n positions
takes, on one worker::

    load + timed + n · seconds a position + (rows + head bytes) / bandwidth + other

Split into K shards it is K tasks of whole batches: each reads the head, the first takes what is timed and
other, and one that follows another of its cell at a place finds the model loaded. On several workers a
reference is two tasks that load it, its pass and then what is timed, which nobody waits for. A place that
turns to another model pays for that model's tokens and SAEs, its first task for the process; while nothing
is ready it prepares these for a model that waits. Where each task has a process of its own, as on a Ray
cluster with GPUs, each pays for all of it and nothing is prepared. No torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qsae_bench.registry.specs import WHOLE, Shard
from qsae_bench.run.workers.dispatch import chosen, to_prepare


@dataclass(frozen=True)
class CellCost:
    """What one cell costs a worker that has it alone."""

    model: str
    quantization: str
    is_reference: bool
    sequences: int
    sequence_length: int
    batch_size: int
    """sequences; shards are of whole batches"""
    position_seconds: float
    """of a quantized cell: forward, SAEs and heads; of a reference: forward, and its pass over the store"""
    load_seconds: float = 0.0
    timed_seconds: float = 0.0
    """what benchmarks of speed do beside the pass; by one worker of a cell, however it is split"""
    other_seconds: float = 0.0
    """beside all these, by one worker of a cell: the inspection of its weights, warming up, freeing"""
    setup_seconds: float = 0.0
    """the model's tokens and SAEs: whenever a worker turns to the model"""
    rows_bytes: int = 0
    """of the reference store: a reference writes them, a quantized cell reads them"""
    head_bytes: int = 0
    """of the store, once a task"""
    byte_seconds: float = 0.0
    """1 / bandwidth; 0 where the seconds a position have the store's traffic in them"""

    @property
    def id(self) -> str:
        return f"{self.model}-{self.quantization}"

    @property
    def positions(self) -> int:
        return self.sequences * self.sequence_length

    @property
    def pass_seconds(self) -> float:
        return self.positions * self.position_seconds

    @property
    def store_seconds(self) -> float:
        """Unsplit."""
        return (self.rows_bytes + self.head_bytes) * self.byte_seconds

    @property
    def seconds(self) -> float:
        """Unsplit, on a worker that has the model's tokens and SAEs."""
        own = self.load_seconds + self.timed_seconds + self.other_seconds
        return own + self.pass_seconds + self.store_seconds


@dataclass(frozen=True)
class Piece:
    """A task: a cell, one of its shards, or one of the two of a reference."""

    cell: CellCost
    shard: Shard = WHOLE
    measures: bool = True
    times: bool = True
    prepares: bool = False
    """only the model's tokens and SAEs, and the process: by a place that would wait otherwise"""

    @property
    def leads(self) -> bool:
        """Whether others wait for it."""
        return self.cell.is_reference and self.measures

    @property
    def positions(self) -> int:
        if not self.measures:
            return 0
        mine = self.shard.of_batches(self.cell.sequences, self.cell.batch_size)
        return len(mine) * self.cell.sequence_length

    @property
    def own_seconds(self) -> float:
        """Without loading the model."""
        cell, once = self.cell, self.measures and self.shard.index == 0
        passed = self.positions * cell.position_seconds + self.bytes * cell.byte_seconds
        return cell.timed_seconds * self.times + cell.other_seconds * once + passed

    @property
    def bytes(self) -> float:
        """To or from the store."""
        if not self.measures:
            return 0.0
        return self.positions / self.cell.positions * self.cell.rows_bytes + self.cell.head_bytes

    def seconds(self, last: Piece | None, start_seconds: float) -> float:
        """At a place whose last task was ``last``; its first one also starts the worker."""
        began = start_seconds if last is None else 0.0
        if last is None or last.cell.model != self.cell.model:
            began += self.cell.setup_seconds
        if self.prepares:
            return began
        if last is None or last.cell != self.cell or last.prepares or self.shard == WHOLE:
            began += self.cell.load_seconds
        return began + self.own_seconds


@dataclass(frozen=True)
class Turn:
    """A task at its place."""

    piece: Piece
    place: int
    begin_seconds: float
    seconds: float

    @property
    def end_seconds(self) -> float:
        return self.begin_seconds + self.seconds


@dataclass(frozen=True)
class Schedule:
    """Which place did what, and when."""

    workers: int
    turns: tuple[Turn, ...]
    start_seconds: float
    driver_seconds: float = 0.0
    """before the first task and after the last, with no worker at work"""
    keeps: bool = True
    """a place is one process"""

    @property
    def makespan_seconds(self) -> float:
        return self.driver_seconds + self.tasks_seconds if self.turns else 0.0

    @property
    def tasks_seconds(self) -> float:
        return max((turn.end_seconds for turn in self.turns if not turn.piece.prepares), default=0.0)

    @property
    def busy_seconds(self) -> float:
        """Until the last task ends: who still prepares then is ended."""
        end = self.tasks_seconds
        return sum(max(0.0, min(turn.end_seconds, end) - turn.begin_seconds) for turn in self.turns)

    @property
    def busy_share(self) -> float:
        """Of the workers' time; the rest they wait for a reference, or for the last ones to end."""
        return self.busy_seconds / (self.workers * self.tasks_seconds) if self.tasks_seconds else 1.0

    @property
    def store_bytes(self) -> float:
        """Read and written in all."""
        return sum(turn.piece.bytes for turn in self.turns)

    @cached_property
    def of_models(self) -> Mapping[str, list[Turn]]:
        found: dict[str, list[Turn]] = {}
        for turn in self.turns:
            found.setdefault(turn.piece.cell.model, []).append(turn)
        return found

    @property
    def path_bound_seconds(self) -> float:
        """Least time with any number of workers: of references with a task after each, the longest."""
        paths = []
        for turns in self.of_models.values():
            pieces = [turn.piece for turn in turns]
            begins = self.start_seconds + pieces[0].cell.setup_seconds
            each = 0.0 if self.keeps else begins
            own = {p: each + p.own_seconds + p.cell.load_seconds for p in pieces if not p.prepares}
            first = sum(seconds for p, seconds in own.items() if p.leads)
            after = max((seconds for p, seconds in own.items() if not p.leads), default=0.0)
            paths.append(begins - each + first + after)
        return self.driver_seconds + max(paths) if paths else 0.0

    @property
    def work_bound_seconds(self) -> float:
        """Least time on so many workers: no cell loaded twice, no model set up twice, nobody waiting; where
        each task has its own process, each loads and sets up."""
        if not self.keeps:
            every = sum(turn.seconds for turn in self.turns)
            return self.driver_seconds * bool(self.turns) + every / self.workers
        cells = {turn.piece.cell for turn in self.turns}
        setups = {cell.model: cell.setup_seconds for cell in cells}
        own = sum(turn.piece.own_seconds for turn in self.turns)
        least = self.start_seconds * bool(cells) + sum(setups.values()) + own
        share = (least + sum(cell.load_seconds for cell in cells)) / self.workers
        return self.driver_seconds * bool(cells) + share

    @property
    def list_bound_seconds(self) -> float:
        """Most that handing out whatever is ready can take: work / G + (1 − 1 / G) · the longest chain.

        Graham, *Bounds on multiprocessing timing anomalies*, SIAM J. Appl. Math. 17 (1969): it holds for
        any order and precedence, so at most (2 − 1 / G) times the best schedule where no task's time
        depends on where it runs. Both terms are of the times that the tasks took at their places.
        """
        chains = []
        for turns in self.of_models.values():
            first = sum(turn.seconds for turn in turns if turn.piece.leads)
            after = [turn.seconds for turn in turns if not (turn.piece.leads or turn.piece.prepares)]
            chains.append(first + max(after, default=0.0))
        longest = (1 - 1 / self.workers) * max(chains, default=0.0)
        return self.driver_seconds * bool(chains) + self.busy_seconds / self.workers + longest


def pieces(cells: Iterable[CellCost], workers: int = 1, shards: int = 1) -> list[Piece]:
    """Tasks in the cells' order.

    A reference is one pass, which leaves what the others read; on several workers, what is timed of it is a
    second task.
    """
    found: list[Piece] = []
    for cell in cells:
        if not cell.is_reference:
            found += [Piece(cell, Shard(k, shards), times=k == 0) for k in range(shards)]
        elif workers > 1 and cell.timed_seconds:
            found += [Piece(cell, times=False), Piece(cell, measures=False)]
        else:
            found.append(Piece(cell))
    return found


def schedule(
    cells: Sequence[CellCost],
    workers: int,
    shards: int = 1,
    start_seconds: float = 0.0,
    driver_seconds: float = 0.0,
    keeps: bool = True,
) -> Schedule:
    """Hand out the cells' tasks by the dispatcher's rule to whoever is free.

    ``keeps``: a place is one process, which keeps what it has; else each task has its own.

    A model without a reference among ``cells`` has it in the store. A place that has just become free is
    served before those that were idle.
    """
    waiting = pieces(cells, workers, shards)
    missing = {cell.model for cell in cells if cell.is_reference}
    free = list(range(min(workers, len(waiting))))
    last: dict[int, Piece] = {}
    running: list[tuple[float, int]] = []
    turns: list[Turn] = []
    now = 0.0
    while waiting or running:
        for place in list(free):
            ready = [p for p in waiting if p.leads or p.cell.model not in missing]
            if ready:
                piece = chosen(ready, last.get(place))
                waiting.remove(piece)
            elif keeps and (first := to_prepare(waiting, last.get(place), list(last.values()))) is not None:
                piece = Piece(first.cell, measures=False, times=False, prepares=True)
            else:
                continue
            before = last.get(place) if keeps else None
            turns.append(Turn(piece, place, now, piece.seconds(before, start_seconds)))
            heapq.heappush(running, (turns[-1].end_seconds, place))
            free.remove(place)
            last[place] = piece
        now = running[0][0]
        while running and running[0][0] <= now:
            place = heapq.heappop(running)[1]
            free.insert(0, place)
            if last[place].leads:
                missing.discard(last[place].cell.model)
    return Schedule(workers, tuple(turns), start_seconds, driver_seconds, keeps)
