"""A worker's own side, in this process: what a task took, and what goes wrong in a shard."""

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
        selection=Selection(tokens=4064, max_tokens=4064), on_warning=lambda line: None, timing=False,
    )  # fmt: skip
    return Worker(options)


@pytest.fixture(scope="module")
def reference(worker, cells):
    return worker.run(Task(cells["reference"]), None).measured


def test_it_says_what_a_task_took(worker, cells, reference):
    outcome = worker.run(Task(cells["rtn_int4"], shard=Shard(0, 2)), reference)
    assert len(outcome.part.measurement.rows) == 16
    assert 0 < outcome.notes.spent.busy_seconds <= outcome.seconds
    again = worker.run(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference)
    assert again.notes.spent.busy_seconds <= again.seconds, "each task's own"


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("a kernel"), Crashed), (QsaeError("can't be read: timeout"), QsaeError)]
)  # fmt: skip
def test_a_shard_that_fails_refuses_its_cell(worker, cells, reference, monkeypatch, error, kind):
    def fails(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", fails)
        outcome = worker.run(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference)
    assert type(outcome.refused) is kind and str(error) in str(outcome.refused)
    assert outcome.part is None
    assert isinstance(outcome.steps[MEASURED], QsaeError)
    assert worker.run(Task(cells["rtn_int4"], shard=Shard(1, 2)), reference).refused is None
