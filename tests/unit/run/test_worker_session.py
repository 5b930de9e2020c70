"""A session whose workers answer what a test wants: nothing waits without end, and every refusal arrives."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

import builders
from qsae_bench.errors import CannotRun, Crashed, OutOfMemory, QsaeError, TimedWorkFailed
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.progress import ProgressOutput
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import WHOLE
from qsae_bench.run.session import SessionOptions
from qsae_bench.run.stopwatch import TimeSpent
from qsae_bench.run.timed_workloads import TimedResult
from qsae_bench.run.worker_session import WorkerSession
from qsae_bench.run.workers.dispatch import WorkerLost
from qsae_bench.run.workers.tasks import FIT, MEASURED, Notes, ShardRange, Task, TaskResult
from qsae_bench.stats.sequential import LookPlan

PLAN = LookPlan((480, 960), False, "revision")


def measurement_of(cell, seed=0):
    data = builders.synthetic(seed)
    return builders.measurement(
        data, cell.model.layers, model=cell.model.name, quantization=cell.quantization.name
    )


def answer(task, reference):
    """As a worker for which nothing goes wrong."""
    steps = {FIT: None} | {work: TimedResult((1.0,)) for work in task.workloads}
    notes = Notes(
        {"load_seconds": 1.0 if task.measures else 9.0}, environment={"device": "cpu", "cpu": "one"}
    )
    if task.shard != WHOLE:
        part = ShardRange(measurement_of(task.cell, task.shard.index), PLAN, True, None, 2.0)
        return TaskResult(steps | {MEASURED: None}, part=part, notes=notes)
    if not task.measures:
        return TaskResult(steps, notes=notes)
    measured = CellResult.begin(measurement_of(task.cell), PLAN, False, None)
    return TaskResult(steps | {MEASURED: None}, measured=measured, notes=notes)


class Engine:
    about, start_seconds = "a test's", 0.0

    def __init__(self, places=1, answers=None):
        self.places, self.answers, self.ran, self.given = places, answers or {}, [], {}
        self.lock = threading.Lock()

    def run(self, place, task, reference):
        with self.lock:
            self.ran.append(task)
            self.given[task] = reference
        found = self.answers.get(task.cell.quantization.name, answer)
        return found(task, reference)

    def close(self):
        """Nothing runs."""


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "int8", "nf4"))
    )
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture
def open_session(tmp_path):
    """``open_session(engine, tasks, shards)`` opens a session; a wait that does not end fails the test."""
    opened = []

    def make(engine, tasks=(), shards=1):
        options = SessionOptions(
            load_registry(), Thresholds({}), tmp_path, "a test", device="cpu", on_warning=lambda line: warnings.append(line)
        )  # fmt: skip
        made = WorkerSession(options, engine, tasks, shards)
        opened.append(made)
        return made

    warnings = make.warnings = []
    yield make
    for one in opened:
        one.close()


def in_time(work, seconds=20):
    """What the work gives or raises; it must end."""
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits without end"
    return found[0]


def test_what_no_marker_announced_is_asked_for_with_its_reference(cells, open_session):
    engine = Engine()
    session = open_session(engine, [Task(cells["nf4"], ("load",), measures=False)])
    assert in_time(lambda: session.time_workload(cells["nf4"], "load")).seconds == (1.0,)
    assert isinstance(in_time(lambda: session.measure(cells["nf4"])), CellResult)
    assert [task.cell.quantization.name for task in engine.ran] == ["nf4", "reference", "nf4"]
    assert isinstance(in_time(lambda: session.time_workload(cells["nf4"], "sae")), TimedResult)
    assert session.costs(cells["nf4"])["load_seconds"] == 9.0, "what was known first stands"


def test_a_reference_that_was_asked_only_for_its_load_is_measured_for_others(cells, open_session):
    tasks = [Task(cells["reference"], ("load",), measures=False), Task(cells["nf4"])]
    session = open_session(Engine(), tasks)
    assert isinstance(in_time(lambda: session.measure(cells["nf4"])), CellResult)
    assert cells["reference"] in session.measured


@pytest.mark.parametrize("error", [CannotRun("no GPU"), OutOfMemory("too large"), Crashed("r: crashed: x")])
def test_a_refused_reference_lets_nobody_wait(cells, open_session, error):
    def refuses(task, reference):
        return TaskResult({FIT: None, MEASURED: error}, refused=error)

    def needs_it(task, reference):
        assert isinstance(reference, QsaeError)
        return refuses(task, reference)

    engine = Engine(answers={"reference": refuses, "nf4": needs_it})
    session = open_session(engine, [Task(cells["reference"]), Task(cells["nf4"])])
    for name in ("reference", "nf4"):
        session.require(cells[name])
        found = in_time(lambda name=name: session.measure(cells[name]))
        assert type(found) is type(error) and str(found) == str(error)
        with pytest.raises(type(error)):
            session.require(cells[name])


def test_a_reference_that_failed_without_being_refused_lets_nobody_wait(cells, open_session):
    failed = TaskResult({FIT: None, MEASURED: TimedWorkFailed("ValueError: nobody saw it coming")})
    engine = Engine(answers={"reference": lambda task, reference: failed})
    session = open_session(engine, [Task(cells["reference"]), Task(cells["nf4"])])
    in_time(lambda: session.measure(cells["nf4"]))
    (given,) = [engine.given[task] for task in engine.ran if task.needs_reference]
    assert isinstance(given, Crashed)
    assert isinstance(in_time(lambda: session.measure(cells["reference"])), TimedWorkFailed)


def test_a_works_exception_is_its_tests_alone(cells, open_session):
    def fails(task, reference):
        found = answer(task, reference)
        return TaskResult(
            {**found.steps, "prefill": TimedWorkFailed("RuntimeError: no kernel")}, measured=found.measured
        )

    session = open_session(Engine(answers={"nf4": fails}), [Task(cells["nf4"], ("prefill",))])
    assert str(in_time(lambda: session.time_workload(cells["nf4"], "prefill"))) == "RuntimeError: no kernel"
    session.require(cells["nf4"])
    assert isinstance(in_time(lambda: session.measure(cells["nf4"])), CellResult)


@pytest.mark.parametrize("works", [(), ("evaluation",)])
def test_a_failing_shard_refuses_its_cell(cells, open_session, works):
    error = OutOfMemory("nf4: out of memory")

    def fails(task, reference):
        if task.shard.index != 1:
            return answer(task, reference)
        return TaskResult({FIT: None, MEASURED: error}, refused=error)

    session = open_session(
        Engine(answers={"nf4": fails}), [Task(cells["nf4"], works), Task(cells["int8"])], shards=3
    )
    session.require(cells["nf4"])
    found = in_time(lambda: session.measure(cells["nf4"]))
    assert isinstance(found, OutOfMemory)
    assert session.refused[cells["nf4"]] is not None
    assert cells["nf4"] not in session.measured
    assert isinstance(in_time(lambda: session.measure(cells["int8"])), CellResult)


@pytest.mark.parametrize("failing", [{1}, {0}, {0, 1, 2}])
@pytest.mark.parametrize(
    "error", [TimedWorkFailed("RuntimeError: a kernel"), QsaeError("the store: timeout")]
)
def test_a_shard_that_measured_nothing_is_never_left_out(cells, open_session, failing, error):
    def fails(task, reference):
        failed = TaskResult({FIT: None, MEASURED: error})
        return failed if task.shard.index in failing else answer(task, reference)

    session = open_session(
        Engine(answers={"nf4": fails}), [Task(cells["nf4"]), Task(cells["int8"])], shards=3
    )
    found = in_time(lambda: session.measure(cells["nf4"]))
    assert isinstance(found, QsaeError) and str(error) in str(found)
    assert cells["nf4"] not in session.measured
    assert isinstance(in_time(lambda: session.measure(cells["int8"])), CellResult)


def test_shards_on_several_places_warn(cells, open_session):
    def answers(task, reference):
        return on(["one", "two", "one"][task.shard.index], shared=task.shard.index == 1)(task, reference)

    session = open_session(Engine(answers={"nf4": answers}), [Task(cells["nf4"])], shards=3)
    in_time(lambda: session.measure(cells["nf4"]))
    assert session.shares_device(cells["nf4"])
    assert (
        "its shards were measured on one and two: they differ by that, too"
        in session.warnings[cells["nf4"]]
    )


def test_a_shard_that_fails_at_a_later_look_leaves_what_was_measured(cells, open_session, monkeypatch):
    error = OutOfMemory("nf4: out of memory")

    def fails(task, reference):
        return (
            TaskResult({FIT: None}, refused=error)
            if task.look and task.shard.index
            else answer(task, reference)
        )

    engine = Engine(answers={"nf4": fails})
    session = open_session(engine, [Task(cells["nf4"], ("evaluation",))], shards=2)
    monkeypatch.setattr(session, "_undecided", lambda cell, measured: True)
    measured = in_time(lambda: session.measure(cells["nf4"]))
    assert measured.stop_reason == str(error)
    assert len(measured.looks) == 1
    assert len(measured.measurement.rows) == 80
    assert "not more: nf4: out of memory" in open_session.warnings[-1]
    assert in_time(lambda: session.time_workload(cells["nf4"], "evaluation")).seconds == (6.0,)
    assert [task.look for task in engine.ran if task.needs_reference] == [0, 0, 1, 1]


def test_what_is_timed_of_a_reference_comes_after_what_others_wait_for(cells, open_session):
    engine = Engine(places=2)
    works = ("load", "evaluation", "prefill", "overhead")
    session = open_session(engine, [Task(cells["reference"], works), Task(cells["nf4"])])
    in_time(lambda: session.time_workload(cells["reference"], "overhead"))
    in_time(lambda: session.measure(cells["nf4"]))
    first, *rest = engine.ran
    assert (first.workloads, first.measures) == (("load", "evaluation"), True)
    assert {task.workloads for task in rest} == {("prefill", "overhead"), ()}
    assert session.costs(cells["reference"])["load_seconds"] == 1.0, "of its first load"
    alone = Engine(places=1)
    session = open_session(alone, [Task(cells["reference"], works)])
    in_time(lambda: session.measure(cells["reference"]))
    assert [task.workloads for task in alone.ran] == [works]


def test_a_lost_worker_is_reported_once(cells, open_session):
    tries = []

    def dies(task, reference):
        tries.append(task)
        if len(tries) == 1:
            raise WorkerLost("killed by SIGKILL")
        return answer(task, reference)

    session = open_session(Engine(answers={"nf4": dies}), [Task(cells["nf4"])])
    in_time(lambda: session.measure(cells["nf4"]))
    session.require(cells["nf4"])
    lost = "tiny_gemma3-nf4: ran again: its worker was lost: killed by SIGKILL"
    assert session.warnings[cells["nf4"]] == open_session.warnings == [lost]


@pytest.mark.parametrize("name", ["load", "model", "reference", "release"])
def test_a_model_that_is_in_a_worker_can_not_be_had(open_session, name):
    with pytest.raises(QsaeError, match=f"`session.{name}` is not available with --workers") as refused:
        getattr(open_session(Engine()), name)
    assert "\n" not in str(refused.value)


def test_the_environment_is_the_workers(cells, open_session):
    session = open_session(Engine(), [Task(cells["reference"])])
    in_time(lambda: session.measure(cells["reference"]))
    assert session.environment == {"device": "cpu", "cpu": "one", "executor": "a test's"}
    assert session.hardware == "one"


def on(cpu, shared=False, spent=None):
    def answered(task, reference):
        outcome = answer(task, reference)
        about = {
            "environment": {"device": "cpu", "cpu": cpu},
            "shared_device": shared,
            "spent": spent or TimeSpent(3.0, 1.0),
        }
        return replace(outcome, notes=replace(outcome.notes, **about), seconds=2.0)

    return answered


def test_notes_of_workers_belong_to_their_cell(cells, open_session):
    nf4, reference = cells["nf4"], cells["reference"]
    engine = Engine(
        answers={"nf4": on("two", shared=True, spent=TimeSpent(7.0, 0.5)), "reference": on("one")}
    )
    session = open_session(engine, [Task(reference), Task(nf4)])
    in_time(lambda: (session.measure(reference), session.measure(nf4)))
    assert [session.shares_device(cell) for cell in (reference, nf4)] == [False, True]
    assert [session.hardware_of(cell) for cell in (reference, nf4)] == ["one", "two"]
    assert [session.spent(cell) for cell in (reference, nf4)] == [TimeSpent(3.0, 1.0), TimeSpent(7.0, 0.5)]
    assert open_session.warnings == [
        "tiny_gemma3-nf4: measured on two, other cells of this run on one: they differ by that, too"
    ]


def test_progress_shows_how_many_tasks_are_done_and_what_is_left(cells, open_session):
    lines = []
    going, seen = threading.Event(), threading.Event()

    def waits(task, reference):
        going.wait(60)
        return on("one")(task, reference)

    def write(line):
        lines.append(line)
        seen.set()

    engine = Engine(answers={"reference": on("one"), "nf4": waits})
    session = open_session(engine, [Task(cells[name]) for name in ("reference", "nf4", "int8")])
    session.options = replace(session.options, progress=ProgressOutput(write, 0.0))
    in_time(lambda: session.measure(cells["reference"]))
    lines.clear()
    seen.clear()
    threading.Thread(target=lambda: (seen.wait(60), going.set())).start()
    in_time(lambda: session.measure(cells["nf4"]))
    assert lines[0] == "1 of 3 tasks done, 1 at work, about 4 s left"


def test_a_message_of_no_cell_is_shown_once(cells, open_session):
    def answered(task, reference):
        return replace(on("one")(task, reference), messages=("the corpus is short",))

    session = open_session(Engine(answers={"reference": answered, "nf4": answered}), [Task(cells["nf4"])])
    in_time(lambda: session.measure(cells["nf4"]))
    assert open_session.warnings == ["the corpus is short"]
    assert session.spent(cells["nf4"]) == TimeSpent(3.0, 1.0)


def test_equal_warnings_do_not_hide_a_later_one(cells, open_session):
    """Two workers that died alike, then one that has something to say."""
    dies = iter([True, True, False, False])

    def answered(task, reference):
        if next(dies):
            raise WorkerLost("killed by SIGKILL")
        outcome = on("one")(task, reference)
        more = () if task.measures else ("900 MB were not given back",)
        return replace(outcome, notes=replace(outcome.notes, warnings=more))

    engine = Engine(places=2, answers={"reference": answered})
    session = open_session(engine, [Task(cells["reference"], ("load", "prefill"))])
    in_time(lambda: session.measure(cells["reference"]))
    in_time(lambda: session.time_workload(cells["reference"], "prefill"))
    assert "900 MB were not given back" in session.warnings[cells["reference"]]


def test_the_hardware_is_the_workers_whoever_answers_first(cells, open_session):
    def refused(task, reference):
        return TaskResult(refused=CannotRun("no session can be made"))

    engine = Engine(answers={"nf4": refused})
    session = open_session(engine, [Task(cells["nf4"], measures=False), Task(cells["reference"])])
    in_time(lambda: session.require(cells["nf4"]))
    in_time(lambda: session.measure(cells["reference"]))
    assert session.hardware == "one"
    assert open_session.warnings == []


def test_no_more_shards_than_batches(cells, open_session):
    """512 tokens are five sequences: one batch, which can't be split."""
    session = open_session(Engine(), [Task(cells["nf4"])], shards=100)
    session.options = replace(session.options, selection=Selection(tokens=512, max_tokens=512))
    in_time(lambda: session.measure(cells["nf4"]))
    assert {task.shard for task in session.engine.ran} == {WHOLE}
    more = open_session(Engine(), [Task(cells["nf4"])], shards=100)
    in_time(lambda: more.measure(cells["nf4"]))
    assert sum(task.cell == cells["nf4"] for task in more.engine.ran) == 16
