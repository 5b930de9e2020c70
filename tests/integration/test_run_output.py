"""What a run prints: its own lines and pytest's, and nothing of the libraries that it uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from paths import ROOT

KNOWN = re.compile(
    r"""
    | =+\ .*\ =+ | platform\ .* | benchmark:\ .* | rootdir:\ .* | configfile:\ .* | plugins:\ .* | collected\ .*
    | benchmarks/test_\w+\.py(::\S+)?\ [.F]*(\ +\[\ *\d+%\])?
    | _+\ test_.*\ _+
    | tiny_gemma3-\w+(\ layer\ \d)?:\ \w+\ [A-Z]+
    | \ \ (measured|judged\ by|threshold|why|do|reference|moved|more)\ .*
    | tiny_gemma3\ on\ tiny:\ .*
    | (quantization|reference|int8|nf4)\ .* | -+(\ +-+)*
    | note:\ .* | \ \ \S.* | qsae-bench:\ .* | run:\ .* | red:\ .*
    | FAILED\ benchmarks/.*
    """,
    re.VERBOSE,
)


def test_a_run_says_nothing_that_is_not_its_own_or_pytests(tmp_path):
    """Failing gates, so that pytest shows whatever was logged or written while their cells were loaded and measured."""
    command = [
        sys.executable, "-m", "pytest", "benchmarks", "-k", "perplexity", "--models", "tiny_gemma3",
        "--quantizations", "reference,int8,nf4", "--tokens", "2032", "--thresholds", "docs/strict.toml",
        "--qsae-dir", str(tmp_path), "-p", "no:cacheprovider",
    ]  # fmt: skip
    quiet = {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "100"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "INCONCLUSIVE" in done.stdout or "FAIL" in done.stdout
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if not KNOWN.fullmatch(line)] == []
    assert "\x1b" not in done.stdout and "warning" not in done.stdout
