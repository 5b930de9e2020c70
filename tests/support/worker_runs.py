"""Runs on workers, and what must hold of them: the same numbers as in one process, whatever dies meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import killing
import ray_cluster
from qsae_bench.metrics.features import VECTORS
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.rows import read_rows

SEQUENCES = 48
"""of the first look: three batches"""
TOKENS = ("--tokens", str(SEQUENCES * 127), "--max-tokens", str(4 * SEQUENCES * 127))
"""a second look, where a gate is undecided after the first"""
BENCHMARKS = ("-k", "load or evaluation or perplexity or divergence or fvu or features")
EVERYTHING = ("--quantizations", "reference,int8,nf4,rtn_int4", *TOKENS, *BENCHMARKS)
FAULTY = (
    "--registry", str(killing.FAULTS / "crashes.toml"), "-k", "evaluation or perplexity",
    "--max-tokens", "2032",
)  # fmt: skip
COUNTS = ("both", "only_r", "only_q")
END_SECONDS = 20
"""for killed processes to be gone"""


def check_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to 1e-9 relative, numbers and structure; what a run timed is its own."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - killing.TIMINGS - {*killing.TAKEN, "warnings"}
        for key in keys:
            assert key in one and key in other, f"{where}.{key} is in one only"
            check_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            check_same(*pair, f"{where}[{index}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15), f"{where}: {one} and {other}"
    else:
        assert one == other, f"{where}: {one} and {other}"


def rows_of(qsae_dir: Path) -> dict[str, Measurement]:
    """The stored rows of every cell of the newest run."""
    return {
        path.stem: read_rows(path)
        for path in (qsae_dir / "latest" / "rows").glob("*.parquet")
        if "features" not in path.name
    }


def check_runs(qsae_dir: Path, other_dir: Path) -> None:
    """The documents, every row, the feature sums, and each test's outcome in JUnit are the same."""
    one, other = killing.latest(qsae_dir), killing.latest(other_dir)
    check_same(one["cells"], other["cells"])
    check_same(one["corpus"], other["corpus"])
    assert one["failed_tests"] == other["failed_tests"]
    assert killing.outcomes(qsae_dir) == killing.outcomes(other_dir)
    own, others = rows_of(qsae_dir), rows_of(other_dir)
    assert own.keys() == others.keys()
    for name, a in own.items():
        b = others[name]
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


def check_run(expected: tuple[Path, int], qsae_dir: Path, status: int, output: str, executor: str) -> None:
    """A run on workers is what the run in one process was, (directory, exit status)."""
    truth, expected_status = expected
    assert status == expected_status, output
    check_runs(truth, qsae_dir)
    document = killing.latest(qsae_dir)
    assert document["environment"]["executor"].startswith(executor)
    assert any(cell["looks"] > 1 for cell in document["cells"]), "no cell had a second look"
    assert "Traceback" not in output


def undisturbed(qsae_dir: Path, markers: Path, quantizations: str) -> Path:
    """A run of the faulty quantizations in which nothing dies; its directory."""
    for name in ("killed", "go on"):
        (markers / name).touch()
    killing.run(qsae_dir, *FAULTY, "--quantizations", quantizations, QSAE_MARKERS=str(markers))
    return qsae_dir


def by_quantization(qsae_dir: Path) -> dict[str, Any]:
    """The cells of the newest run, in their order."""
    return {cell["quantization"]: cell for cell in killing.latest(qsae_dir)["cells"]}


def check_cells(truth: Path, qsae_dir: Path, *names: str) -> None:
    """Those cells are as in the other run."""
    expected, found = by_quantization(truth), by_quantization(qsae_dir)
    for name in names:
        check_same(expected[name], found[name], name)


def check_nobody_left(group: int) -> None:
    """No process of the run's group is there; those of a killed worker take a moment."""
    until = time.monotonic() + END_SECONDS
    while left := [ray_cluster.command_of(pid) for pid in ray_cluster.members(group)]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def check_gone(pid: int) -> None:
    """A process that is no child of this one ends."""
    until = time.monotonic() + END_SECONDS
    while command := ray_cluster.command_of(pid):
        assert time.monotonic() < until, command
        time.sleep(0.1)


def wait_for(found: Callable[[], Any], process: Any, seconds: float = 200) -> Any:
    """Wait until something is found while the process runs."""
    until = time.monotonic() + seconds
    while not (it := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return it


def at_work(markers: Path) -> list[int]:
    """The processes in which a quantization waits."""
    return [int(path.name.rpartition("-")[2]) for path in markers.glob("at-work-*")]


def journalled(qsae_dir: Path) -> int:
    """How many cells the unfinished run has stored."""
    return len(list(qsae_dir.glob("runs/*/journal/[!.]*.json")))


def warnings_of(qsae_dir: Path) -> str:
    """All warnings of the newest run's cells."""
    return " ".join(line for cell in killing.latest(qsae_dir)["cells"] for line in cell["warnings"])


def start_with_one_cell_left(
    qsae_dir: Path, markers: Path, few: tuple[str, ...], **environment: str
) -> tuple[Any, int]:
    """A run of three cells, two of which are stored while the third waits, and that one's worker."""
    process = killing.start(qsae_dir, *few, **environment)
    wait_for(lambda: at_work(markers) and journalled(qsae_dir) == 2, process)
    (worker,) = at_work(markers)
    return process, worker


def check_resumed(
    truth: Path, qsae_dir: Path, markers: Path, few: tuple[str, ...], **environment: str
) -> None:
    """Resume a run of reference, rtn_int4 and waits: two cells are stored already, and stay as they are."""
    before = killing.journal_of(qsae_dir)
    (markers / "go on").touch()
    _, output = killing.run(qsae_dir, *few, "--resume", **environment)
    assert "2 of 3 cells are finished" in output
    check_cells(truth, qsae_dir, "reference", "rtn_int4", "waits")
    for path, (inode, _, content) in before.items():
        if "/rows/" in path:
            assert (os.stat(path).st_ino, Path(path).read_bytes()) == (inode, content), "measured again"
