"""Cells measured on Ray clusters: shards, buckets, clients' addresses, mixed GPUs, and whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import killing
import ray_cluster
import s3_server
from store_places import Place
from worker_runs import (
    EVERYTHING,
    FAULTY,
    at_work,
    by_quantization,
    check_cells,
    check_gone,
    check_nobody_left,
    check_resumed,
    check_run,
    start_with_one_cell_left,
    undisturbed,
    wait_for,
    warnings_of,
)  # fmt: skip

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, exit status) of a run in one process."""
    qsae_dir = tmp_path_factory.mktemp("whole") / "qsae"
    return qsae_dir, killing.run(qsae_dir, *EVERYTHING)[0]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(folder / "qsae", folder, "reference,once,waits,waits_too,rtn_int4")


@pytest.fixture(scope="module")
def s3():
    """The environment of a client of an S3 server: for this process, its runs and the cluster's nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, s3):
    home = tmp_path_factory.mktemp("ray")
    (home / "markers").mkdir()
    with ray_cluster.cluster(home / "nodes", home / "markers") as found:
        yield found


@pytest.fixture
def markers(nodes):
    """The folder in which faulty quantizations leave their markers, empty."""
    folder = Path(nodes.environment["QSAE_MARKERS"])
    for path in folder.iterdir():
        path.unlink()
    return folder


@pytest.mark.parametrize("arguments", [(), ("--shards", "3")])
def test_a_cluster_of_two_nodes_measures_what_one_process_measures(whole, nodes, tmp_path, arguments):
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", "ray", *arguments, **nodes.environment
    )
    check_run(whole, tmp_path / "qsae", status, output, "ray")
    assert "2 nodes" in killing.latest(tmp_path / "qsae")["environment"]["executor"]


def test_a_cluster_can_be_named_by_its_clients_address(whole, nodes, tmp_path):
    environment = {key: value for key, value in nodes.environment.items() if key != "RAY_ADDRESS"}
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", f"ray://127.0.0.1:{nodes.client}", **environment
    )
    check_run(whole, tmp_path / "qsae", status, output, "ray")


@pytest.mark.parametrize(
    "arguments", [("--workers", "2", "--shards", "3"), ("--executor", "ray")], ids=["local", "ray"]
)
def test_workers_share_the_references_of_a_bucket(whole, nodes, tmp_path, arguments):
    place = Place("s3", tmp_path)
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--reference-store", place.url, *arguments, **nodes.environment
    )
    check_run(whole, tmp_path / "qsae", status, output, "ray" if "ray" in arguments else "local")
    assert not (tmp_path / "qsae" / "references").exists()
    looks = max(cell["looks"] for cell in killing.latest(tmp_path / "qsae")["cells"])
    rows = [name for name in place.files() if name.endswith("rows-00000.safetensors")]
    assert len(place.entries()) == len(rows) == looks, "each look's reference is written once"


def test_a_cluster_of_two_kinds_of_gpu_measures_on_one(tmp_path):
    """Nodes that say that they have GPUs: where tasks go is Ray's doing, as it would be with real ones."""
    markers = tmp_path / "markers"
    markers.mkdir()
    (markers / "go on").touch()
    with ray_cluster.cluster(tmp_path / "nodes", markers, kinds=("T4", "H100")) as nodes:
        few = (*FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray")
        _, output = killing.run(tmp_path / "qsae", *few, "--gpu-kind", "H100", **nodes.environment)
        document = killing.latest(tmp_path / "qsae")
        assert {cell["status"] for cell in document["cells"]} == {"measured"}, output
        assert "2 GPUs, 1 of them H100" in document["environment"]["executor"]
        worked = {path.read_text(encoding="utf-8") for path in markers.glob("at-work-*")}
        assert worked == {str(pid) for pid in nodes.raylets(nodes.nodes[1])}
        status, output = killing.run(tmp_path / "none", *few, "--gpu-kind", "H10", **nodes.environment)
        assert status != 0
        expected = "--gpu-kind 'H10': the cluster has H100, T4 (did you mean 'H100'?)"
        assert expected in " ".join(output.split())


def test_a_dead_cluster_is_asked_once(tmp_path):
    started = time.monotonic()
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", f"ray://127.0.0.1:{ray_cluster.free_port()}"
    )
    assert status != 0
    assert output.count("no cluster answers") > 1, "every test says it"
    assert time.monotonic() - started < 120


# -- faults


def test_a_killed_workers_cell_runs_again(truth, nodes, markers, tmp_path):
    process = killing.start(
        tmp_path / "qsae", *FAULTY, "--executor", "ray", "--quantizations", "reference,once,rtn_int4",
        **nodes.environment,
    )  # fmt: skip
    output, _ = process.communicate(timeout=400)
    check_cells(truth, tmp_path / "qsae", "reference", "once", "rtn_int4")
    again = "tiny_gemma3-once: ran again: its worker was lost: The worker died unexpectedly"
    assert again in " ".join(output.split()) and again in warnings_of(tmp_path / "qsae")
    check_nobody_left(process.pid)


def test_a_worker_that_somebody_kills(truth, nodes, markers, tmp_path):
    """From outside, in the middle of a cell, while the other worker has another."""
    process = killing.start(
        tmp_path / "qsae", *FAULTY, "--executor", "ray", "--quantizations", "reference,waits,waits_too",
        **nodes.environment,
    )  # fmt: skip
    both = wait_for(lambda: len(found := at_work(markers)) == 2 and found, process)
    os.kill(both[0], signal.SIGKILL)
    (markers / "go on").touch()
    output, _ = process.communicate(timeout=400)
    check_cells(truth, tmp_path / "qsae", "reference", "waits", "waits_too")
    assert output.count("ran again") >= 1
    check_nobody_left(process.pid)


def test_a_cell_that_kills_every_worker_is_its_own_failure(truth, nodes, markers, tmp_path):
    status, output = killing.run(
        tmp_path / "qsae", *FAULTY, "--executor", "ray", "--quantizations", "reference,segfault,rtn_int4",
        **nodes.environment,
    )  # fmt: skip
    assert status == 3, output
    segfault = by_quantization(tmp_path / "qsae")["segfault"]
    reason = "tiny_gemma3-segfault: crashed: its worker died 3 times: The worker died unexpectedly"
    assert segfault["status"] == "crashed" and segfault["reason"].startswith(reason)
    check_cells(truth, tmp_path / "qsae", "reference", "rtn_int4")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_run_that_ends_early_is_resumed_and_leaves_nobody(truth, nodes, markers, tmp_path, number):
    few = (*FAULTY, "--executor", "ray", "--quantizations", "reference,rtn_int4,waits")
    qsae_dir = tmp_path / "qsae"
    process, worker = start_with_one_cell_left(qsae_dir, markers, few, **nodes.environment)
    if number == signal.SIGKILL:
        os.kill(process.pid, number)  # the driver alone
    else:
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 2, output
        assert "unfinished: 2 of 3 cells" in output
        assert "Traceback" not in output
    check_nobody_left(process.pid)
    check_gone(worker)
    check_resumed(truth, qsae_dir, markers, few, **nodes.environment)


def test_a_node_that_dies(truth, tmp_path):
    """Its raylet is killed while both nodes have a cell: what it had is done on the other one."""
    markers = tmp_path / "markers"
    markers.mkdir()
    with ray_cluster.cluster(tmp_path / "nodes", markers) as nodes:
        process = killing.start(
            tmp_path / "qsae", *FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray",
            **nodes.environment,
        )  # fmt: skip
        wait_for(lambda: len(at_work(markers)) == 2, process)
        for pid in nodes.raylets(nodes.nodes[1]):
            os.kill(pid, signal.SIGKILL)
        (markers / "go on").touch()
        output, _ = process.communicate(timeout=400)
        check_cells(truth, tmp_path / "qsae", "reference", "waits", "waits_too")
        assert "ran again: its worker was lost" in " ".join(output.split())
        check_nobody_left(process.pid)


def test_queued_tasks_end_when_the_only_node_that_could_take_them_is_gone(tmp_path):
    """Ray itself keeps what no node can take for ever."""
    markers = tmp_path / "markers"
    markers.mkdir()
    with ray_cluster.cluster(tmp_path / "nodes", markers, kinds=("T4", "H100")) as nodes:
        process = killing.start(
            tmp_path / "qsae", *FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray",
            "--gpu-kind", "H100", **nodes.environment,
        )  # fmt: skip
        wait_for(lambda: at_work(markers), process)
        for pid in nodes.raylets(nodes.nodes[1]):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        cells = by_quantization(tmp_path / "qsae")
        for name in ("waits", "waits_too"):
            assert "no node with a GPU (H100) any more" in cells[name]["reason"], output
        check_nobody_left(process.pid)
