"""A run that is killed again and again is the run that nothing happened to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import killing
from qsae_bench.results import run_folder

pytestmark = pytest.mark.large

KILLS = 20
SEED = 20261124
SELECTION = ("-k", "load or evaluation or perplexity or fvu", "--quantizations", "reference,int8,nf4")


def killed_after(qsae_dir: Path, seconds: float, *arguments: str) -> bool:
    """Run until then; False where the run came to its end before."""
    process = killing.start(qsae_dir, *SELECTION, *arguments)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode in (0, 1), output
    return False


def test_twenty_kills(tmp_path):
    """At moments spread at random over a run's duration, in as many runs as that takes.

    A process that is killed while it starts gets no further, so a run takes several of them to its end.
    """
    killing.ready()
    started = time.monotonic()
    killing.run(tmp_path / "undisturbed", *SELECTION)
    duration = time.monotonic() - started
    truth = killing.measured(killing.latest(tmp_path / "undisturbed"))
    outcomes = killing.outcomes(tmp_path / "undisturbed")
    assert len(outcomes) == 4 * 3
    moments = random.Random(SEED)
    kills = runs = resumed = 0
    while kills < KILLS:
        runs += 1
        qsae_dir = tmp_path / f"run{runs}"
        known: dict[str, tuple[int, int, bytes]] = {}
        while True:
            unfinished = list(qsae_dir.glob("runs/*/started.json"))
            last = kills == KILLS
            fuse = 400.0 if last else moments.uniform(0, duration)
            if not killed_after(qsae_dir, fuse, *(["--resume"] if unfinished else [])):
                break
            kills += 1
            killing.check_readable(qsae_dir)
            now = killing.journal_of(qsae_dir)
            if list(qsae_dir.glob("runs/*/started.json")):
                assert {path: now.get(path) for path in known} == known, "a finished cell was written again"
                resumed += bool(now)
                known = now
            elif list(qsae_dir.glob("runs/*/run.json")):
                break  # it was killed after its last step
        document = killing.latest(qsae_dir)
        assert killing.measured(document) == truth, f"run {runs}"
        for path, (inode, _, content) in known.items():
            if "/rows/" in path:
                assert (os.stat(path).st_ino, Path(path).read_bytes()) == (inode, content)
        assert killing.outcomes(qsae_dir) == outcomes, f"run {runs}"
        run_folder.clean_up(qsae_dir, {})  # as the next run does: a kill may come after the end
        (run,) = (qsae_dir / "runs").iterdir()
        assert run.name == document["run_id"], "one run, whatever happened to it"
        assert sorted(path.name for path in run.iterdir() if path.name != "summary.md") == [
            "rows",
            "run.json",
        ]
    assert resumed, "no kill came when a cell was finished and another was not"
    print(f"\n{kills} kills in {runs} runs of {duration:.0f} s; {resumed} with finished cells")
