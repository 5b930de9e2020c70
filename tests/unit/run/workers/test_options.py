"""Options of workers and isolation: how they are read, and which can't be or don't go together."""

from __future__ import annotations

import pytest

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.run.workers.options import WorkerOptions


def asked(**given):
    options = {
        "--executor": "local", "--workers": None, "--shards": 1, "--splice": False, "--gpu-kind": "",
        "--reference-store": "", "--isolate": False, "--isolate-timeout": None,
    }  # fmt: skip
    options |= {f"--{name}": value for name, value in given.items()}
    return WorkerOptions.of(options.__getitem__)


def test_where_cells_are_measured():
    assert asked().in_process
    assert not asked(workers=1).in_process
    assert asked(executor="ray") == WorkerOptions("ray")
    assert asked(executor="ray://10.0.0.1:10001", shards=4) == WorkerOptions(
        "ray", "ray://10.0.0.1:10001", 0, 4
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "--workers 0: at least 1"),
        ({"reference-store": "memory://x", "workers": 2}, "--reference-store memory://: workers"),
        ({"gpu-kind": "H100", "workers": 2}, "--gpu-kind H100: without --executor ray"),
        ({"shards": 0}, "--shards 0: at least 1"),
        ({"executor": "slurm"}, "--executor 'slurm': local, ray, or ray://HOST:PORT"),
        ({"executor": "ray://"}, "--executor 'ray://'"),
        ({"shards": 3}, "add --workers 3"),
        ({"shards": 3, "workers": 3, "splice": True}, "leave one of the two out"),
        ({"isolate": True, "isolate-timeout": 0.0}, "--isolate-timeout 0: must be more than 0 seconds"),
        ({"isolate": True, "isolate-timeout": -1.0}, "--isolate-timeout -1: must be more than 0 seconds"),
        ({"isolate-timeout": 60.0}, "--isolate-timeout: needs --isolate or --workers"),
        ({"isolate": True, "workers": 2}, "--isolate: workers are processes of their own already"),
        ({"executor": "ray", "isolate-timeout": 60.0}, "--isolate-timeout: not with Ray"),
    ],
)
def test_options_that_can_not_be(given, message):
    with pytest.raises(QsaeError) as refused:
        asked(**given)
    assert message in one_line(refused.value)
