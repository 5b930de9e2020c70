"""Runs of the benchmarks in processes of their own, to be killed; and what must hold of what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

import warm
from paths import ROOT
from qsae_bench.metrics import cost
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
