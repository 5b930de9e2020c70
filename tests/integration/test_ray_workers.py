"""Cells measured on a Ray cluster of two nodes, one of whose workers is killed. More is nightly."""

from __future__ import annotations

import pytest

import killing
import ray_cluster
from worker_runs import FAULTY, check_cells, check_nobody_left, undisturbed, warnings_of


def test_a_cluster_measures_what_one_process_measures_though_a_worker_dies(tmp_path):
    pytest.importorskip("ray")
    quantizations = "reference,once,rtn_int4"
    (tmp_path / "undisturbed").mkdir()
    truth = undisturbed(tmp_path / "one", tmp_path / "undisturbed", quantizations)
    markers = tmp_path / "markers"
    markers.mkdir()
    with ray_cluster.cluster(tmp_path / "nodes", markers) as nodes:
        process = killing.start(
            tmp_path / "qsae", *FAULTY, "--executor", "ray", "--quantizations", quantizations,
            **nodes.environment,
        )  # fmt: skip
        output, _ = process.communicate(timeout=400)
        check_nobody_left(process.pid)
    assert "Traceback" not in output
    check_cells(truth, tmp_path / "qsae", "reference", "once", "rtn_int4")
    assert "2 nodes" in killing.latest(tmp_path / "qsae")["environment"]["executor"]
    again = "tiny_gemma3-once: ran again: its worker was lost: The worker died unexpectedly"
    assert again in " ".join(output.split()) and again in warnings_of(tmp_path / "qsae")
