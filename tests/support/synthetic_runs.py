"""Runs of ``pytest benchmarks --synthetic`` in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from paths import ROOT


def synthetic_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "-q", "--synthetic", "--qsae-dir", str(folder), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def latest(folder: Path) -> dict:
    return json.loads((folder / "latest" / "run.json").read_text(encoding="utf-8"))
