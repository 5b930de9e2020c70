"""A worker's own side, in this process: what goes wrong in a shard is said, and what it prepares stays."""

from __future__ import annotations

import pytest

from qsae_bench.errors import Crashed, QsaeError
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.measure import evaluation
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.registry.specs import Shard
from qsae_bench.run.session import SessionOptions
from qsae_bench.run.workers.tasks import MEASURED, Task
from qsae_bench.run.workers.worker import Worker


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "rtn_int4"))
    )
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    options = SessionOptions(
        load_registry(), Thresholds({}), tmp_path_factory.mktemp("worker"), "a test", device="cpu",
        selection=Selection(tokens=4064, max_tokens=4064), say=lambda line: None, timing=False,
    )  # fmt: skip
    return Worker(options)


@pytest.fixture(scope="module")
def reference(worker, cells):
    return worker.do(Task(cells["reference"]), None).measured


def test_it_says_what_a_task_took(worker, cells, reference):
    outcome = worker.do(Task(cells["rtn_int4"], shard=Shard(0, 2)), reference)
    assert len(outcome.part.measurement.rows) == 16
    assert 0 < outcome.notes.spent.busy <= outcome.seconds
    again = worker.do(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference)
    assert again.notes.spent.busy <= again.seconds, "each task's own"


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("a kernel"), Crashed), (QsaeError("can't be read: timeout"), QsaeError)]
)  # fmt: skip
def test_a_shard_that_fails_refuses_its_cell(worker, cells, reference, monkeypatch, error, kind):
    def fails(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", fails)
        outcome = worker.do(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference)
    assert type(outcome.refused) is kind and str(error) in str(outcome.refused)
    assert outcome.part is None
    assert isinstance(outcome.steps[MEASURED], QsaeError)
    assert worker.do(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference).refused is None


def test_what_it_prepares_is_there_and_nothing_else_is_said(worker, cells):
    worker.session._model = None
    outcome = worker.do(Task(cells["rtn_int4"], measures=False, prepares=True), None)
    assert (outcome.steps, outcome.refused, outcome.measured) == ({}, None, None)
    assert "saes" in vars(worker.session._model)
    assert worker.session.holder.loaded is None
    assert outcome.notes.spent.setup > 0


def test_what_it_can_not_prepare_is_left_to_who_wants_it(worker, cells, monkeypatch):
    def fails(cell):
        raise QsaeError("no such SAEs")

    with monkeypatch.context() as patch:
        patch.setattr(worker.session, "shared", fails)
        outcome = worker.do(Task(cells["rtn_int4"], measures=False, prepares=True), None)
    assert outcome.refused is None
    assert cells["rtn_int4"] not in worker.session.refused
