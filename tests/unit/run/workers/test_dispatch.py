"""Tasks on engines that do nothing: order, references, lost workers, timeouts, the end. No process starts."""

from __future__ import annotations

import threading
import time

import pytest

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Shard
from qsae_bench.run.workers.dispatch import ATTEMPTS, Dispatcher, TaskTimedOut, WorkerLost, nearest
from qsae_bench.run.workers.tasks import Task, TaskResult


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3", "gpt2_small"), quantizations=("reference", "int8", "nf4"))
    )
    return {cell.id: cell for cell in chosen}


class FakeEngine:
    """Does nothing, and records in which order."""

    about, start_seconds = "fake", 0.0

    def __init__(self, places=1, loses=(), seconds=0.0):
        self.places, self.loses, self.seconds = places, list(loses), seconds
        self.ran, self.at_once, self.most, self.closed = [], 0, 0, threading.Event()
        self.given = {}
        self.lock = threading.Lock()

    def run(self, place, task, reference):
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.ran.append((place, task))
            self.given[task] = reference
            lost = task.cell.id in self.loses
            if lost:
                self.loses.remove(task.cell.id)
        self.closed.wait(self.seconds)
        with self.lock:
            self.at_once -= 1
        if lost or self.closed.is_set():
            raise WorkerLost("killed by SIGKILL")
        return TaskResult(seconds=1.0)

    def close(self):
        self.closed.set()


class Run:
    def __init__(self, engine, registry, more=None):
        self.outcomes, self.engine, self.more = {}, engine, more or {}
        self.registry = registry
        self.dispatcher = Dispatcher(engine, self.ready, self.reference, self.finished)

    def ready(self, task):
        return not task.needs_reference or self.registry.reference_of(task.cell) in {
            t.cell for t in self.outcomes
        }

    def reference(self, task):
        return QsaeError("what refused the reference")

    def finished(self, task, outcome):
        assert task not in self.outcomes
        self.outcomes[task] = outcome
        return self.more.pop(task, [])

    def all_of(self, tasks):
        return self.dispatcher.wait_for(
            lambda: True if set(tasks) <= self.outcomes.keys() else None, lambda *counts: None
        )


@pytest.fixture
def start():
    """``start(engine, tasks, more=…)`` -> a run whose dispatcher has the tasks; it is closed at the end."""
    runs = []

    def make(engine, tasks, **options):
        runs.append(Run(engine, load_registry(), **options))
        runs[-1].dispatcher.add(tasks)
        return runs[-1]

    yield make
    for run in runs:
        run.dispatcher.close()


@pytest.mark.parametrize("places", [1, 2, 5])
def test_a_reference_is_done_before_what_waits_for_it(cells, start, places):
    tasks = [Task(cell) for cell in reversed(cells.values())]
    engine = FakeEngine(places, seconds=0.02)
    run = start(engine, tasks)
    run.all_of(tasks)
    order = [task.cell for _, task in engine.ran]
    for cell in order:
        assert order.index(load_registry().reference_of(cell)) <= order.index(cell)
    assert engine.most == min(places, 4)  # two references first, then two cells of each model
    assert {type(engine.given[task]) for task in tasks if task.needs_reference} == {QsaeError}
    assert {engine.given[task] for task in tasks if not task.needs_reference} == {None}


def test_what_measures_nothing_waits_for_nothing(cells, start):
    task = Task(cells["tiny_gemma3-nf4"], ("load",), measures=False)
    engine = FakeEngine()
    run = start(engine, [task])
    run.all_of([task])
    assert engine.ran == [(0, task)]
    assert engine.given == {task: None}


def test_a_place_keeps_to_its_cell_and_its_model(cells):
    one, other, third = (
        Task(cells[f"{name}-nf4"]) for name in ("tiny_gemma3", "gpt2_small", "tiny_gemma3")
    )
    shard = Task(cells["tiny_gemma3-nf4"], shard=Shard(1, 2))
    assert nearest([other, one], None) == other
    assert nearest([other, Task(cells["tiny_gemma3-int8"])], one) == Task(cells["tiny_gemma3-int8"])
    assert nearest([other, Task(cells["tiny_gemma3-int8"]), shard], third) == shard
    reference = Task(cells["gpt2_small-reference"])
    assert nearest([other, reference, shard], one) == shard
    assert nearest([other, Task(cells["tiny_gemma3-reference"])], reference) == other
    assert nearest([one, reference], None) == reference
    assert nearest([one, Task(cells["gpt2_small-reference"], measures=False)], None) == one, (
        "nobody waits for it"
    )


def test_a_lost_workers_task_runs_again_and_the_cell_says_so(cells, start):
    tasks = [Task(cell) for cell in cells.values()]
    engine = FakeEngine(2, loses=["tiny_gemma3-nf4", "tiny_gemma3-nf4", "gpt2_small-reference"])
    run = start(engine, tasks)
    run.all_of(tasks)
    assert len(engine.ran) == len(tasks) + 3
    outcome = run.outcomes[Task(cells["tiny_gemma3-nf4"])]
    assert outcome.refused is None
    assert outcome.notes.warnings == (
        "tiny_gemma3-nf4: ran again: its worker was lost: killed by SIGKILL",
    ) * 2  # fmt: skip


def test_what_the_engine_refuses_is_the_cells_refusal(cells, start):
    class Refuses(FakeEngine):
        def run(self, place, task, reference):
            if task.cell.id == "tiny_gemma3-nf4":
                raise QsaeError("the cluster has no node with a GPU any more")
            return super().run(place, task, reference)

    tasks = [Task(cell) for cell in cells.values()]
    run = start(Refuses(2), tasks)
    run.all_of(tasks)
    refused = {task.cell.id: str(one.refused) for task, one in run.outcomes.items() if one.refused}
    assert refused == {"tiny_gemma3-nf4": "the cluster has no node with a GPU any more"}


def test_a_cell_that_kills_every_worker_is_that_cells_failure(cells, start):
    tasks = [Task(cell) for cell in cells.values()]
    engine = FakeEngine(2, loses=["tiny_gemma3-nf4"] * 10)
    run = start(engine, tasks)
    run.all_of(tasks)
    refused = run.outcomes[Task(cells["tiny_gemma3-nf4"])].refused
    assert isinstance(refused, Crashed)
    assert str(refused) == "tiny_gemma3-nf4: crashed: its worker died 3 times: killed by SIGKILL"
    assert sum(task.cell.id == "tiny_gemma3-nf4" for _, task in engine.ran) == ATTEMPTS
    assert [task.cell.id for task, one in run.outcomes.items() if one.refused] == ["tiny_gemma3-nf4"]


def test_a_task_that_times_out_is_not_tried_again(cells, start):
    class Slow(FakeEngine):
        def run(self, place, task, reference):
            result = super().run(place, task, reference)
            if task.cell.id == "tiny_gemma3-nf4":
                raise TaskTimedOut("took longer than 5 s")
            return result

    tasks = [Task(cell) for cell in cells.values()]
    run = start(Slow(2), tasks)
    run.all_of(tasks)
    refused = {task.cell.id: str(one.refused) for task, one in run.outcomes.items() if one.refused}
    assert refused == {"tiny_gemma3-nf4": "tiny_gemma3-nf4: crashed: took longer than 5 s"}
    assert len(run.engine.ran) == len(tasks)


def test_what_a_finished_task_brings_is_done_next(cells, start):
    first, more = Task(cells["tiny_gemma3-reference"]), Task(cells["tiny_gemma3-nf4"], look=1)
    last = Task(cells["gpt2_small-reference"], measures=False)
    engine = FakeEngine()
    run = start(engine, [first, last], more={first: [more]})
    run.all_of([first, more, last])
    assert [task for _, task in engine.ran] == [first, more, last]


def test_closing_ends_what_runs_and_starts_nothing(cells, start):
    tasks = [Task(cell) for cell in cells.values()]
    engine = FakeEngine(1, seconds=30)
    run = start(engine, tasks)
    while not engine.ran:
        time.sleep(0.01)
    started = time.monotonic()
    run.dispatcher.close()
    assert time.monotonic() - started < 5
    assert len(engine.ran) == 1
    assert not any(thread.is_alive() for thread in run.dispatcher._threads)


def test_a_fault_of_ours_reaches_the_one_who_waits(cells, start):
    task = Task(cells["tiny_gemma3-reference"])
    run = start(FakeEngine(), [])
    run.dispatcher._finished = lambda task, outcome: 1 / 0
    run.dispatcher.add([task])
    with pytest.raises(ZeroDivisionError):
        run.all_of([task])
