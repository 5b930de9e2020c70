"""``--executor``, ``--workers``, ``--shards``, ``--gpu-kind``: what they say, and what they can't be."""

from __future__ import annotations

import pytest

from qsae_bench.errors import QsaeError
from qsae_bench.run.workers.options import WorkerOptions


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
    assert asked().in_process
    assert not asked(workers=1).in_process
    assert asked(executor="ray") == WorkerOptions("ray")
    assert asked(executor="ray://10.0.0.1:10001", shards=4) == WorkerOptions(
        "ray", "ray://10.0.0.1:10001", 0, 4
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, "--workers 0: at least 1"),
        ({"reference-store": "memory://x", "workers": 2}, "--reference-store memory://: workers"),
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
