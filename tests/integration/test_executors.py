"""Cells measured by workers, on this machine and on a Ray cluster: the same numbers, whatever dies meanwhile."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import killing
import ray_cluster
import s3_server
from qsae_bench.metrics import cost
from qsae_bench.metrics.features import VECTORS
from qsae_bench.registry.specs import Shard
from qsae_bench.results.rows import read_rows
from store_places import Place

pytestmark = [pytest.mark.large, pytest.mark.xdist_group("executors")]

SEQUENCES = 48
"""of the first look: three batches"""
EVERYTHING = (
    "--quantizations", "reference,int8,nf4,rtn_int4", "--tokens", str(SEQUENCES * 127), "--max-tokens", "24384",
    "-k", "load or evaluation or perplexity or divergence or fvu or features",
)  # fmt: skip
FAULTY = (
    "--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity", "--max-tokens", "2032",
)  # fmt: skip
OWN = {metric.key for metric in cost.METRICS} - {"weight_bytes", "bits_per_weight"}
COUNTS = ("both", "only_r", "only_q")
GONE_SECONDS = 20


def same(one, other, where=""):
    """Equal to 1e-9 relative, numbers and structure; what a run timed is its own."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - OWN - {*killing.TAKEN, "warnings"}
        for key in keys:
            assert key in one and key in other, f"{where}.{key} is in one only"
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}[{index}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15), f"{where}: {one} and {other}"
    else:
        assert one == other, f"{where}: {one} and {other}"


def rows_of(qsae_dir: Path):
    return {
        path.stem: read_rows(path)
        for path in (qsae_dir / "latest" / "rows").glob("*.parquet")
        if "features" not in path.name
    }


def check_runs(qsae_dir: Path, other_dir: Path):
    """The documents, every row, the feature sums, and what JUnit says of each test."""
    one, other = killing.latest(qsae_dir), killing.latest(other_dir)
    same(one["cells"], other["cells"])
    same(one["corpus"], other["corpus"])
    assert one["failed_tests"] == other["failed_tests"]
    assert killing.outcomes(qsae_dir) == killing.outcomes(other_dir)
    mine, theirs = rows_of(qsae_dir), rows_of(other_dir)
    assert mine.keys() == theirs.keys()
    for name, a in mine.items():
        b = theirs[name]
        for left, right in ((a.rows, b.rows), *((a.layers[k], b.layers[k]) for k in a.layers)):
            for key in left.scalars:
                np.testing.assert_allclose(left.scalars[key], right.scalars[key], rtol=1e-9, atol=1e-300)
            for key in left.vectors:
                np.testing.assert_allclose(left.vectors[key], right.vectors[key], rtol=1e-9, atol=1e-12)
        for layer, sums in a.features.items():
            for key in VECTORS:
                found, expected = sums.vectors[key], b.features[layer].vectors[key]
                if key in COUNTS:
                    np.testing.assert_array_equal(found, expected)
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
            np.testing.assert_array_equal(sums.positions, b.features[layer].positions)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """(directory, exit status) of a run in one process."""
    qsae_dir = tmp_path_factory.mktemp("here") / "qsae"
    return qsae_dir, killing.run(qsae_dir, *EVERYTHING)[0]


@pytest.fixture(scope="module")
def s3():
    """The environment of a client of an S3 server: for this process, its runs and the cluster's nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, s3):
    pytest.importorskip("ray")
    home = tmp_path_factory.mktemp("ray")
    (home / "markers").mkdir()
    with ray_cluster.cluster(home / "nodes", home / "markers") as found:
        yield found


def check_run(here, qsae_dir, status, output, executor):
    truth, expected = here
    assert status == expected, output
    check_runs(truth, qsae_dir)
    document = killing.latest(qsae_dir)
    assert document["environment"]["executor"].startswith(executor)
    assert any(cell["looks"] > 1 for cell in document["cells"]), (
        "no cell ran on: nothing of that was tested"
    )
    assert "Traceback" not in output


@pytest.mark.parametrize("arguments", [("--workers", "2"), ("--workers", "2", "--shards", "3")])
def test_workers_measure_what_one_process_measures(here, tmp_path, arguments):
    status, output = killing.run(tmp_path / "qsae", *EVERYTHING, *arguments)
    check_run(here, tmp_path / "qsae", status, output, "local, 2 workers, threads each: 1")
    corpus = killing.latest(tmp_path / "qsae")["corpus"]["tiny_gemma3"]
    assert corpus["sequences"] == SEQUENCES
    shards = [len(Shard(k, 3).of_batches(SEQUENCES, corpus["batch_size"])) for k in range(3)]
    assert shards == [16, 16, 16], "each of three has something to do"


@pytest.mark.parametrize("arguments", [(), ("--shards", "3")])
def test_a_cluster_of_two_nodes_measures_what_one_process_measures(here, nodes, tmp_path, arguments):
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", "ray", *arguments, **nodes.environment
    )
    check_run(here, tmp_path / "qsae", status, output, "ray")
    assert "2 nodes" in killing.latest(tmp_path / "qsae")["environment"]["executor"]


def test_a_cluster_can_be_named_by_its_clients_address(here, nodes, tmp_path):
    environment = {key: value for key, value in nodes.environment.items() if key != "RAY_ADDRESS"}
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", f"ray://127.0.0.1:{nodes.client}", **environment
    )
    check_run(here, tmp_path / "qsae", status, output, "ray")


@pytest.mark.parametrize(
    "arguments", [("--workers", "2", "--shards", "3"), ("--executor", "ray")], ids=["local", "ray"]
)
def test_workers_share_the_references_of_a_bucket(here, nodes, tmp_path, arguments):
    place = Place("s3", tmp_path)
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--reference-store", place.url, *arguments, **nodes.environment
    )
    check_run(here, tmp_path / "qsae", status, output, "ray" if "ray" in arguments else "local")
    assert not (tmp_path / "qsae" / "references").exists()
    looks = max(cell["looks"] for cell in killing.latest(tmp_path / "qsae")["cells"])
    rows = [name for name in place.files() if name.endswith("rows-00000.safetensors")]
    assert len(place.entries()) == len(rows) == looks, "each look's reference is written once"


def test_what_is_timed_beside_others_says_so(tmp_path):
    _, output = killing.run(
        tmp_path / "qsae",
        "-k",
        "load or prefill or sae",
        "--quantizations",
        "reference,int8",
        "--workers",
        "2",
    )
    cells = killing.latest(tmp_path / "qsae")["cells"]
    assert [cell["shared_device"] for cell in cells] == [True, True]
    assert "† reference, int8: load and speeds: its device was shared" in " ".join(output.split())
    flags = [timing["flags"] for cell in cells for timing in cell["timings"].values()]
    assert flags
    assert all("its device was shared with other workers of this run" in one for one in flags), output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--splice", "--noise-floor"),
        ("--no-reference-store", "--strict"),
        ("--benchmark-disable",),
        ("--benchmark-skip",),
        ("-x",),
    ],
    ids=" ".join,
)
def test_other_options_do_with_workers_what_they_do_without(tmp_path, arguments):
    """The reference is not selected: it is measured because the others need it."""
    few = (
        "-k", "load or perplexity or fvu", "--quantizations", "rtn_int4,rtn_int3", "--max-tokens", "4064", *arguments,
    )  # fmt: skip
    here, said = killing.run(tmp_path / "here", *few)
    status, output = killing.run(tmp_path / "far", *few, "--workers", "2")
    assert status == here, said + output
    check_runs(tmp_path / "here", tmp_path / "far")


SAME_MODEL = """
[models.other]
source = "package:tiny/data/model"
n_layers = 6
d_model = 192
layers = [1, 3, 4]
corpus = "tiny"
architecture = { model_type = "gemma3_text", vocab_size = 2560, intermediate_size = 768, num_attention_heads = 4, num_key_value_heads = 2, head_dim = 48, tie_word_embeddings = true }
sae = { folder = "%s", d_in = 192, d_sae = 2048 }
[models.other.reference_bounds]
cross_entropy = [%s]
"""


@pytest.mark.parametrize(
    ("saes", "bounds"), [("/nowhere", "0.5, 3.5"), ("package:tiny/data/saes", "0.1, 0.2")], ids=["no SAEs", "insane"]
)  # fmt: skip
def test_a_reference_that_is_refused_is_refused_the_same(tmp_path, saes, bounds):
    (tmp_path / "own.toml").write_text(SAME_MODEL % (saes, bounds), encoding="utf-8")
    few = (
        "--registry", str(tmp_path / "own.toml"), "--models", "other", "--quantizations", "reference,rtn_int4",
        "-k", "load or evaluation or perplexity",
    )  # fmt: skip
    here, said = killing.run(tmp_path / "here", *few)
    status, output = killing.run(tmp_path / "far", *few, "--workers", "2")
    assert status == here != 0, said + output
    check_runs(tmp_path / "here", tmp_path / "far")


def test_a_cluster_of_two_kinds_of_gpu_measures_on_one(tmp_path):
    """Nodes that say that they have GPUs: where tasks go is Ray's doing, as it would be with real ones."""
    pytest.importorskip("ray")
    markers = tmp_path / "markers"
    markers.mkdir()
    (markers / "go on").touch()
    with ray_cluster.cluster(tmp_path / "nodes", markers, kinds=("T4", "H100")) as nodes:
        few = (*FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray")
        _, output = killing.run(tmp_path / "qsae", *few, "--gpu-kind", "H100", **nodes.environment)
        cells = killing.latest(tmp_path / "qsae")
        assert {cell["status"] for cell in cells["cells"]} == {"measured"}, output
        assert "2 GPUs, 1 of them H100" in cells["environment"]["executor"]
        worked = {path.read_text(encoding="utf-8") for path in markers.glob("at-work-*")}
        assert worked == {str(pid) for pid in nodes.raylets(nodes.nodes[1])}
        status, output = killing.run(tmp_path / "none", *few, "--gpu-kind", "H10", **nodes.environment)
        assert status != 0
        assert "--gpu-kind 'H10': the cluster has H100, T4 (did you mean 'H100'?)" in " ".join(
            output.split()
        )


def test_xdist_is_refused_and_workers_are_named(tmp_path):
    status, output = killing.run(tmp_path / "qsae", "-n", "2")
    assert status == 2, output
    assert "--workers N measures cells in N processes" in " ".join(output.split())
    assert "Traceback" not in output


def test_a_dead_cluster_is_asked_once(tmp_path):
    pytest.importorskip("ray")
    started = time.monotonic()
    status, output = killing.run(
        tmp_path / "qsae", *EVERYTHING, "--executor", f"ray://127.0.0.1:{ray_cluster.free_port()}"
    )
    assert status != 0
    assert output.count("no cluster answers") > 1, "every test says it"
    assert time.monotonic() - started < 120


# -- faults


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """What the recipes of the tests below give where nothing dies."""
    qsae_dir = tmp_path_factory.mktemp("faulty") / "qsae"
    markers = tmp_path_factory.mktemp("markers")
    for name in ("killed", "go on"):
        (markers / name).touch()
    killing.run(
        qsae_dir,
        *FAULTY,
        "--quantizations",
        "reference,once,waits,waits_too,rtn_int4",
        QSAE_MARKERS=str(markers),
    )
    return qsae_dir


def check_cells(truth: Path, qsae_dir: Path, *names: str):
    """Those cells, and all that was measured of them."""
    cells = {cell["quantization"]: cell for cell in killing.latest(truth)["cells"]}
    found = {cell["quantization"]: cell for cell in killing.latest(qsae_dir)["cells"]}
    assert list(found) == list(names)
    for name in names:
        same(cells[name], found[name], name)


def check_nobody_left(group: int):
    """No process of the run's group is there; those of a worker that was killed take a moment."""
    until = time.monotonic() + GONE_SECONDS
    while left := [ray_cluster.command_of(pid) for pid in ray_cluster.members(group)]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def wait_for(found, process, seconds=200):
    until = time.monotonic() + seconds
    while not (it := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return it


def warnings_of(qsae_dir: Path) -> str:
    return " ".join(line for cell in killing.latest(qsae_dir)["cells"] for line in cell["warnings"])


KILLED = {"local": ": killed by SIGKILL", "ray": ": The worker died unexpectedly"}
SEGFAULT = {
    "local": ": killed by SIGSEGV; the last that it wrote: the backend's last words",
    "ray": ": The worker died unexpectedly",
}
BOTH = pytest.mark.parametrize("where", ["local", "ray"])


def place_of(where, tmp_path, request):
    """(arguments, environment, folder of markers) of a run on two workers, or on the cluster."""
    if where == "local":
        return (*FAULTY, "--workers", "2"), {"QSAE_MARKERS": str(tmp_path)}, tmp_path
    environment = request.getfixturevalue("nodes").environment
    markers = Path(environment["QSAE_MARKERS"])
    for path in markers.iterdir():
        path.unlink()
    return (*FAULTY, "--executor", "ray"), environment, markers


@BOTH
def test_a_killed_workers_cell_runs_again(faulty, tmp_path, where, request):
    few, environment, _ = place_of(where, tmp_path, request)
    process = killing.start(
        tmp_path / "qsae", *few, "--quantizations", "reference,once,rtn_int4", **environment
    )
    output, _ = process.communicate(timeout=400)
    check_cells(faulty, tmp_path / "qsae", "reference", "once", "rtn_int4")
    said = f"tiny_gemma3-once: ran again: its worker was lost{KILLED[where]}"
    assert said in " ".join(output.split())
    assert said in warnings_of(tmp_path / "qsae")
    check_nobody_left(process.pid)


@BOTH
def test_a_worker_that_somebody_kills(faulty, tmp_path, where, request):
    """From outside, in the middle of a cell, while the other worker has another."""
    few, environment, markers = place_of(where, tmp_path, request)
    process = killing.start(
        tmp_path / "qsae", *few, "--quantizations", "reference,waits,waits_too", **environment
    )
    both = wait_for(lambda: len(found := list(markers.glob("at-work-*"))) == 2 and found, process)
    os.kill(int(both[0].name.rpartition("-")[2]), signal.SIGKILL)
    (markers / "go on").touch()
    output, _ = process.communicate(timeout=400)
    check_cells(faulty, tmp_path / "qsae", "reference", "waits", "waits_too")
    assert output.count("ran again") >= 1
    check_nobody_left(process.pid)


@BOTH
def test_a_cell_that_kills_every_worker_is_its_own_failure(faulty, tmp_path, where, request):
    few, environment, _ = place_of(where, tmp_path, request)
    status, output = killing.run(
        tmp_path / "qsae", *few, "--quantizations", "reference,segfault,rtn_int4", **environment
    )
    assert status == 3, output
    cells = {cell["quantization"]: cell for cell in killing.latest(tmp_path / "qsae")["cells"]}
    assert cells["segfault"]["status"] == "crashed"
    said = f"tiny_gemma3-segfault: crashed: its worker died 3 times{SEGFAULT[where]}"
    assert cells["segfault"]["reason"].startswith(said)
    truth = {cell["quantization"]: cell for cell in killing.latest(faulty)["cells"]}
    for name in ("reference", "rtn_int4"):
        same(truth[name], cells[name], name)


def test_a_worker_that_does_not_come_back_is_ended(faulty, tmp_path):
    _, output = killing.run(
        tmp_path / "qsae", *FAULTY, "--quantizations", "reference,waits,rtn_int4", "--workers", "2",
        "--isolate-timeout", "40", QSAE_MARKERS=str(tmp_path),
    )  # fmt: skip
    cells = {cell["quantization"]: cell for cell in killing.latest(tmp_path / "qsae")["cells"]}
    assert cells["waits"]["reason"] == "tiny_gemma3-waits: crashed: took longer than 40 s", output
    truth = {cell["quantization"]: cell for cell in killing.latest(faulty)["cells"]}
    for name in ("reference", "rtn_int4"):
        same(truth[name], cells[name], name)
    # the engine is in the document, and the rest of the environment is the worker's
    one, other = (killing.latest(run)["environment"] for run in (faulty, tmp_path / "qsae"))
    assert other["executor"].startswith("local, 2 workers") and "executor" not in one
    assert {key: other[key] for key in ("versions", "cpu", "gpus")} == {
        key: one[key] for key in ("versions", "cpu", "gpus")
    }


def kill_driver_at_work(process, markers: Path, journalled):
    """SIGKILL for the driver alone, when a cell is finished and another is at work, which ends with it."""
    wait_for(lambda: list(markers.glob("at-work-*")) and journalled(), process)
    (at_work,) = (int(path.name.rpartition("-")[2]) for path in markers.glob("at-work-*"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    check_nobody_left(process.pid)
    check_gone(at_work)
    (markers / "go on").touch()


def check_gone(pid: int):
    """A process that is no child of ours ends."""
    until = time.monotonic() + GONE_SECONDS
    while command := ray_cluster.command_of(pid):
        assert time.monotonic() < until, command
        time.sleep(0.1)


@BOTH
def test_a_killed_driver_is_resumed(faulty, tmp_path, where, request):
    few, environment, markers = place_of(where, tmp_path, request)
    few = (*few, "--quantizations", "reference,rtn_int4,waits")
    qsae_dir = tmp_path / "qsae"
    process = killing.start(qsae_dir, *few, **environment)
    kill_driver_at_work(
        process,
        markers,
        lambda: len(list(qsae_dir.glob("runs/*/journal/[!.]*.json"))) == 2,
    )
    before = killing.journal_of(qsae_dir)
    _, output = killing.run(qsae_dir, *few, "--resume", **environment)
    assert "2 of 3 cells are finished" in output
    check_cells(faulty, qsae_dir, "reference", "rtn_int4", "waits")
    for path, (inode, _, content) in before.items():
        if "/rows/" in path:
            assert (os.stat(path).st_ino, Path(path).read_bytes()) == (inode, content), "measured again"


@BOTH
def test_ctrl_c_leaves_a_run_to_resume_and_nobody_behind(faulty, tmp_path, where, request):
    few, environment, markers = place_of(where, tmp_path, request)
    few = (*few, "--quantizations", "reference,rtn_int4,waits")
    qsae_dir = tmp_path / "qsae"
    process = killing.start(qsae_dir, *few, **environment)
    wait_for(
        lambda: (
            list(markers.glob("at-work-*")) and len(list(qsae_dir.glob("runs/*/journal/[!.]*.json"))) == 2
        ),
        process,
    )
    (at_work,) = (int(path.name.rpartition("-")[2]) for path in markers.glob("at-work-*"))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "unfinished: 2 of 3 cells are kept in" in output
    assert "Traceback" not in output
    check_nobody_left(process.pid)
    check_gone(at_work)
    (markers / "go on").touch()
    _, output = killing.run(qsae_dir, *few, "--resume", **environment)
    check_cells(faulty, qsae_dir, "reference", "rtn_int4", "waits")


def test_a_node_that_dies(faulty, tmp_path):
    """Its raylet is killed while both nodes have a cell: what it had is done on the other one."""
    pytest.importorskip("ray")
    markers = tmp_path / "markers"
    markers.mkdir()
    with ray_cluster.cluster(tmp_path / "nodes", markers) as nodes:
        process = killing.start(
            tmp_path / "qsae", *FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray",
            **nodes.environment,
        )  # fmt: skip
        wait_for(lambda: len(list(markers.glob("at-work-*"))) == 2, process)
        for pid in nodes.raylets(nodes.nodes[1]):
            os.kill(pid, signal.SIGKILL)
        (markers / "go on").touch()
        output, _ = process.communicate(timeout=400)
        check_cells(faulty, tmp_path / "qsae", "reference", "waits", "waits_too")
        assert "ran again: its worker was lost" in " ".join(output.split())
        check_nobody_left(process.pid)


def test_queued_tasks_end_when_the_only_node_that_could_take_them_is_gone(tmp_path):
    """Ray itself keeps what no node can take for ever."""
    pytest.importorskip("ray")
    markers = tmp_path / "markers"
    markers.mkdir()
    with ray_cluster.cluster(tmp_path / "nodes", markers, kinds=("T4", "H100")) as nodes:
        process = killing.start(
            tmp_path / "qsae", *FAULTY, "--quantizations", "reference,waits,waits_too", "--executor", "ray",
            "--gpu-kind", "H100", **nodes.environment,
        )  # fmt: skip
        wait_for(lambda: list(markers.glob("at-work-*")), process)
        for pid in nodes.raylets(nodes.nodes[1]):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        cells = {cell["quantization"]: cell for cell in killing.latest(tmp_path / "qsae")["cells"]}
        for name in ("waits", "waits_too"):
            assert "no node with a GPU (H100) any more" in cells[name]["reason"], output
        check_nobody_left(process.pid)
