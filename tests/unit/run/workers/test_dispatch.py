"""Tasks on engines that do nothing: order, dependencies, lost workers, the end. No process is started."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Shard
from qsae_bench.run.workers.dispatch import ATTEMPTS, Dispatcher, chosen, to_prepare
from qsae_bench.run.workers.engine import Lost
from qsae_bench.run.workers.local import shares
from qsae_bench.run.workers.options import WorkerOptions
from qsae_bench.run.workers.tasks import Task, TaskResult


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3", "gpt2_small"), quantizations=("reference", "int8", "nf4"))
    )
    return {cell.id: cell for cell in chosen}


class FakeEngine:
    """Does nothing, and writes down in which order."""

    about, start_seconds = "fake", 0.0

    def __init__(self, places=1, loses=(), seconds=0.0, keeps=False):
        self.keeps = keeps
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
            raise Lost("killed by SIGKILL")
        return TaskResult(seconds=1.0)

    def close(self):
        self.closed.set()


class Run:
    def __init__(self, engine, registry, more=None):
        self.outcomes, self.engine, self.more = {}, engine, more or {}
        self.registry = registry
        self.dispatcher = Dispatcher(engine, self.ready, self.reference, self.finished)

    def ready(self, task):
        return not task.waits or self.registry.reference_of(task.cell) in {t.cell for t in self.outcomes}

    def reference(self, task):
        return QsaeError("what refused the reference")

    def finished(self, task, outcome):
        assert task not in self.outcomes
        self.outcomes[task] = outcome
        return self.more.pop(task, [])

    def all_of(self, tasks):
        return self.dispatcher.until(
            lambda: True if set(tasks) <= self.outcomes.keys() else None, lambda *counts: None
        )


def start(engine, tasks, **options):
    run = Run(engine, load_registry(), **options)
    run.dispatcher.add(tasks)
    return run


@pytest.mark.parametrize("places", [1, 2, 5])
def test_a_reference_is_done_before_what_waits_for_it(cells, places):
    tasks = [Task(cell) for cell in reversed(cells.values())]
    engine = FakeEngine(places, seconds=0.02)
    run = start(engine, tasks)
    run.all_of(tasks)
    order = [task.cell for _, task in engine.ran]
    for cell in order:
        assert order.index(load_registry().reference_of(cell)) <= order.index(cell)
    assert engine.most == min(places, 4)  # two references first, then two cells of each model
    assert {type(engine.given[task]) for task in tasks if task.waits} == {QsaeError}
    assert {engine.given[task] for task in tasks if not task.waits} == {None}
    run.dispatcher.close()


def test_places_prepare_for_different_models(cells):
    tiny, gpt, more = (
        Task(cells[name]) for name in ("tiny_gemma3-int8", "gpt2_small-int8", "gpt2_small-nf4")
    )
    assert to_prepare([tiny, gpt, more], None, []) == tiny
    assert to_prepare([tiny, gpt, more], None, [tiny]) == gpt
    assert to_prepare([tiny, gpt, more], None, [tiny, gpt]) == tiny
    assert to_prepare([tiny, gpt, more], gpt, [tiny, tiny, gpt]) is None
    assert to_prepare([tiny], gpt, [gpt]) == tiny
    assert to_prepare([], None, []) is None


@pytest.mark.parametrize("loses", [(), ("tiny_gemma3-int8",)], ids=["prepared", "lost"])
def test_a_place_that_would_wait_prepares_for_the_first_that_does(cells, loses):
    """Once a model; where its worker dies of that, the next task finds another."""
    names = ("tiny_gemma3-int8", "tiny_gemma3-nf4", "tiny_gemma3-reference")
    tasks = [Task(cells[name]) for name in names]
    engine = FakeEngine(2, seconds=0.3, keeps=True, loses=loses)
    run = start(engine, tasks)
    run.all_of(tasks)
    first = Task(cells["tiny_gemma3-int8"], measures=False, prepares=True)
    (reference_place,) = (place for place, task in engine.ran if task == tasks[2])
    assert set(engine.ran[:2]) == {(reference_place, tasks[2]), (1 - reference_place, first)}
    assert sorted(task.name for _, task in engine.ran[2:]) == sorted(names[:2])
    assert [task for task in run.outcomes if task.prepares] == ([] if loses else [first])
    assert "ran again" not in str([outcome.notes.warnings for outcome in run.outcomes.values()])
    run.dispatcher.close()


def test_what_measures_nothing_waits_for_nothing(cells):
    task = Task(cells["tiny_gemma3-nf4"], ("load",), measures=False)
    engine = FakeEngine()
    run = start(engine, [task])
    run.all_of([task])
    assert engine.ran == [(0, task)]
    assert engine.given == {task: None}
    run.dispatcher.close()


def test_a_place_keeps_to_its_cell_and_its_model(cells):
    one, other, third = (
        Task(cells[f"{name}-nf4"]) for name in ("tiny_gemma3", "gpt2_small", "tiny_gemma3")
    )
    shard = Task(cells["tiny_gemma3-nf4"], shard=Shard(1, 2))
    assert chosen([other, one], None) == other
    assert chosen([other, Task(cells["tiny_gemma3-int8"])], one) == Task(cells["tiny_gemma3-int8"])
    assert chosen([other, Task(cells["tiny_gemma3-int8"]), shard], third) == shard
    reference = Task(cells["gpt2_small-reference"])
    assert chosen([other, reference, shard], one) == shard
    assert chosen([other, Task(cells["tiny_gemma3-reference"])], reference) == other
    assert chosen([one, reference], None) == reference
    assert chosen([one, Task(cells["gpt2_small-reference"], measures=False)], None) == one, (
        "nobody waits for it"
    )


def test_a_lost_workers_task_runs_again_and_the_cell_says_so(cells):
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
    run.dispatcher.close()


def test_what_the_engine_refuses_is_the_cells_refusal(cells):
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
    run.dispatcher.close()


def test_a_cell_that_kills_every_worker_is_that_cells_failure(cells):
    tasks = [Task(cell) for cell in cells.values()]
    engine = FakeEngine(2, loses=["tiny_gemma3-nf4"] * 10)
    run = start(engine, tasks)
    run.all_of(tasks)
    refused = run.outcomes[Task(cells["tiny_gemma3-nf4"])].refused
    assert isinstance(refused, Crashed)
    assert str(refused) == "tiny_gemma3-nf4: crashed: its worker died 3 times: killed by SIGKILL"
    assert sum(task.cell.id == "tiny_gemma3-nf4" for _, task in engine.ran) == ATTEMPTS
    assert all(
        outcome.refused is None
        for task, outcome in run.outcomes.items()
        if task.cell.id != "tiny_gemma3-nf4"
    )
    run.dispatcher.close()


def test_what_a_finished_task_brings_is_done_next(cells):
    first, more = Task(cells["tiny_gemma3-reference"]), Task(cells["tiny_gemma3-nf4"], look=1)
    last = Task(cells["gpt2_small-reference"], measures=False)
    engine = FakeEngine()
    run = start(engine, [first, last], more={first: [more]})
    run.all_of([first, more, last])
    assert [task for _, task in engine.ran] == [first, more, last]
    run.dispatcher.close()


def test_closing_ends_what_runs_and_starts_nothing(cells):
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


def test_a_fault_of_ours_reaches_the_one_who_waits(cells):
    task = Task(cells["tiny_gemma3-reference"])
    run = Run(FakeEngine(), load_registry())
    run.dispatcher._finished = lambda task, outcome: 1 / 0
    run.dispatcher.add([task])
    with pytest.raises(ZeroDivisionError):
        run.all_of([task])
    run.dispatcher.close()


# -- shards and shares


@settings(max_examples=300)
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 12))
def test_shards_are_whole_batches_and_cover_the_sequences_once(sequences, size, count):
    mine = [Shard(k, count).of_batches(sequences, size) for k in range(count)]
    assert [n for one in mine for n in one] == list(range(sequences))
    assert all(one.start % size == 0 for one in mine if len(one))
    batches = [-(-len(one) // size) for one in mine]
    assert max(batches) - min(batches) <= 1


@pytest.mark.parametrize(
    ("workers", "gpus", "cores", "expected"),
    [
        (1, "", 8, [((), 8, True)]),
        (3, "", 8, [((), 2, False)] * 3),
        (4, "", 2, [((), 1, False)] * 4),
        (2, "0123", 16, [(("0", "1"), 8, True), (("2", "3"), 8, True)]),
        (3, "01", 6, [(("0",), 2, False), (("1",), 2, True), (("0",), 2, False)]),
        (3, "01234567", 6, [(("0", "1"), 2, True), (("2", "3"), 2, True), (("4", "5"), 2, True)]),
    ],
)
def test_the_machine_is_split_between_workers(workers, gpus, cores, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [(one.gpus, one.threads, one.alone) for one in shares(workers, tuple(gpus), cores)] == expected


def test_no_worker_takes_more_threads_than_were_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {one.threads for one in shares(2, (), 16)} == {3}


# -- options


def asked(**given):
    options = {
        "--executor": "local",
        "--workers": None,
        "--shards": 1,
        "--splice": False,
        "--gpu-kind": "",
        "--reference-store": "",
    }
    options |= {f"--{name}": value for name, value in given.items()}
    return WorkerOptions.of(options.__getitem__)


def test_what_the_options_say():
    assert asked().is_here
    assert not asked(workers=1).is_here
    assert asked(executor="ray") == WorkerOptions("ray")
    assert asked(executor="ray://10.0.0.1:10001", shards=4) == WorkerOptions(
        "ray", "ray://10.0.0.1:10001", 0, 4
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, "--workers 0: at least 1"),
        ({"reference-store": "memory://x", "workers": 2}, "--reference-store memory://: each worker"),
        ({"gpu-kind": "H100", "workers": 2}, "--gpu-kind H100: without --executor ray"),
        ({"shards": 0}, "--shards 0: at least 1"),
        ({"executor": "slurm"}, "--executor 'slurm': local, ray, or ray://HOST:PORT"),
        ({"executor": "ray://"}, "--executor 'ray://'"),
        ({"shards": 3}, "add --workers 3"),
        ({"shards": 3, "workers": 3, "splice": True}, "leave one of the two out"),
    ],
)
def test_options_that_can_not_be(given, said):
    with pytest.raises(QsaeError, match=said.replace("(", r"\(")) as refused:
        asked(**given)
    assert "\n" not in str(refused.value)
