"""Runs of the benchmarks in processes of their own, to be killed; and what must hold of what they leave."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

import warm
from paths import ROOT
from qsae_bench.metrics import cost
from qsae_bench.results import run_folder
from qsae_bench.results.rows import read_rows

FAULTS = ROOT / "tests" / "support" / "faults"

TIMINGS = {metric.key for metric in cost.METRICS} - {"weight_bytes", "bits_per_weight"}
"""each run's own; so is its peak memory"""
TAKEN = ("timings", "busy_seconds", "setup_seconds", "shared_device")
"""of a cell: what it took, and beside whom"""
OWN = ("run_id", "started", "finished", "command")


def ready() -> None:
    """Import now what runs need: it is not a part of how long one takes."""
    warm.ready({"OMP_NUM_THREADS": "1"})


def start(qsae_dir: Path, *arguments: str, **environment: str) -> warm.Run | subprocess.Popen[str]:
    """A run in a process group of its own."""
    common = (
        "--models", "tiny_gemma3", "--tokens", "2032", "--layers", "3", "--qsae-dir", str(qsae_dir),
        "--junit-xml", str(qsae_dir.with_suffix(".xml")), "-p", "no:cacheprovider",
    )  # fmt: skip
    path = os.pathsep.join(filter(None, (str(FAULTS), os.environ.get("PYTHONPATH"))))
    ours = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return warm.start([*common, *arguments], os.environ | ours | environment, merged=True)


def run(qsae_dir: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """A run to its end: exit status, output."""
    process = start(qsae_dir, *arguments, **environment)
    output, _ = process.communicate(timeout=400)
    assert "INTERNALERROR" not in output, output
    return process.returncode, output


def latest(qsae_dir: Path) -> dict[str, Any]:
    return json.loads((qsae_dir / "latest" / "run.json").read_text(encoding="utf-8"))


def measured(document: dict[str, Any]) -> dict[str, Any]:
    """All of a run document but what is one run's own."""
    cells = []
    for cell in document["cells"]:
        metrics = {key: value for key, value in cell["metrics"].items() if key not in TIMINGS}
        cells.append(cell | {"metrics": metrics} | dict.fromkeys(TAKEN))
    return {key: value for key, value in document.items() if key not in OWN} | {"cells": cells}


def outcomes(qsae_dir: Path) -> dict[str, str]:
    """test -> what JUnit says of it"""
    found = {}
    for case in ElementTree.parse(qsae_dir.with_suffix(".xml")).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = ",".join(kinds) or "passed"
    return found


def journal_of(qsae_dir: Path) -> dict[str, tuple[int, int, bytes]]:
    """path of every finished cell's entry and rows in an unfinished run -> inode, time, content"""
    found = {}
    for entry in qsae_dir.glob("runs/*/journal/[!.]*.json"):
        rows = entry.parents[1].glob(f"rows/{entry.stem}.*")
        for path in (entry, *rows):
            about = path.stat()
            found[str(path)] = (about.st_ino, about.st_mtime_ns, path.read_bytes())
    return found


def entries(qsae_dir: Path) -> list[str]:
    """The finished cells in the journal of its run."""
    return sorted(path.stem for path in qsae_dir.glob("runs/*/journal/[!.]*.json"))


def check_readable(folder: Path) -> None:
    """Every file that a reader could open, under a name that is no temporary one, is whole."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            read_rows(path)
        elif path.suffix == ".safetensors":
            load_file(path)


# -- killed at random moments -----------------------------------------------------------------------

SEED = 20261124
SELECTION = ("-k", "load or evaluation or perplexity or fvu", "--quantizations", "reference,int8,nf4")


def killed_after(qsae_dir: Path, seconds: float, *arguments: str) -> bool:
    """Run until then; False if the run came to its end before."""
    process = start(qsae_dir, *SELECTION, *arguments)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode in (0, 1), output
    return False


def check_kills(folder: Path, most: int) -> None:
    """Kill runs at moments spread at random over a run's duration: each ends as one that nothing happened to.

    A process that is killed while it starts gets no further, so a run takes several of them to its end.
    """
    ready()
    started = time.monotonic()
    run(folder / "undisturbed", *SELECTION)
    duration = time.monotonic() - started
    truth, expected = measured(latest(folder / "undisturbed")), outcomes(folder / "undisturbed")
    assert {name.partition("[")[0].rpartition("::")[2] for name in expected} == {
        "test_load", "test_evaluation", "test_perplexity", "test_fvu",
    }  # fmt: skip
    moments = random.Random(SEED)
    kills = runs = resumed = 0
    while kills < most:
        runs += 1
        qsae_dir = folder / f"run{runs}"
        known: dict[str, tuple[int, int, bytes]] = {}
        while True:
            unfinished = list(qsae_dir.glob("runs/*/started.json"))
            fuse = 400.0 if kills == most else moments.uniform(0, duration)
            if not killed_after(qsae_dir, fuse, *(["--resume"] if unfinished else [])):
                break
            kills += 1
            check_readable(qsae_dir)
            now = journal_of(qsae_dir)
            if list(qsae_dir.glob("runs/*/started.json")):
                assert {path: now.get(path) for path in known} == known, "a finished cell was written again"
                resumed += bool(now)
                known = now
            elif list(qsae_dir.glob("runs/*/run.json")):
                break  # it was killed after its last step
        document = latest(qsae_dir)
        assert measured(document) == truth, f"run {runs}"
        for path, (inode, _, content) in known.items():
            if "/rows/" in path:
                assert (os.stat(path).st_ino, Path(path).read_bytes()) == (inode, content)
        assert outcomes(qsae_dir) == expected, f"run {runs}"
        run_folder.clean_up(qsae_dir, {})  # as the next run does: a kill may come after the end
        (only,) = (qsae_dir / "runs").iterdir()
        assert only.name == document["run_id"], "one run, whatever happened to it"
        assert {path.name for path in only.iterdir()} - {"summary.md"} == {"rows", "run.json"}
    assert resumed, "no kill came when a cell was finished and another was not"
    print(f"\n{kills} kills in {runs} runs of {duration:.0f} s; {resumed} with finished cells")
