"""A quantization in a user's TOML and one in a user's Python file, outside the package: run and compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

import warm
from paths import ROOT


def fenced(kind, having):
    """The code block of CONTRIBUTING that has this text: what its readers copy."""
    blocks = re.findall(
        rf"```{kind}\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S
    )
    (found,) = [block for block in blocks if having in block]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """CONTRIBUTING's two examples as they stand there, run from the clone and compared with nf4."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.toml").write_text(
        fenced("toml", "nf4_single") + fenced("toml", "mine_int4"), encoding="utf-8"
    )
    (folder / "mine_q.py").write_text(fenced("python", "def quantize"), encoding="utf-8")
    arguments = [
        "--models", "tiny_gemma3", "--registry", str(folder / "mine.toml"),
        "--quantizations", "nf4,nf4_single,mine_int4", "-k", "evaluation", "--tokens", "4064",
        "--qsae-dir", str(folder / "qsae"), "-p", "no:cacheprovider",
    ]  # fmt: skip
    done = warm.run(arguments, dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def compare(folder, *arguments):
    command = [sys.executable, "-m", "qsae_bench.app.cli.main", "compare", *arguments]
    done = subprocess.run(
        [*command, "--run", str(folder / "qsae" / "latest")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_template_is_short():
    assert len(fenced("python", "def quantize").splitlines()) < 30


def test_both_are_measured(run):
    folder, output = run
    document = json.loads((folder / "qsae" / "latest" / "run.json").read_text(encoding="utf-8"))
    cells = {cell["quantization"]: cell for cell in document["cells"]}
    for name in ("nf4_single", "mine_int4"):
        assert cells[name]["status"] == "measured"
        assert cells[name]["quantized"]["share"] == 1
        assert cells[name]["metrics"]["kl_divergence"]["value"] > 0
        assert name in output
    assert cells["nf4_single"]["quantized"]["simulated"] is False
    assert cells["nf4_single"]["metrics"]["bits_per_weight"]["value"] > 4.5  # absmax in floats
    assert cells["mine_int4"]["quantized"]["simulated"] is True
    assert 4 < cells["mine_int4"]["metrics"]["bits_per_weight"]["value"] < 5  # what the template says


def test_both_appear_in_the_comparison(run):
    folder, _ = run
    overview = compare(folder)
    assert all(name in overview for name in ("nf4", "nf4_single", "mine_int4"))
    against = compare(folder, "mine_int4", "nf4")
    assert "A = mine_int4, B = nf4" in against
    assert "kl_divergence" in against
