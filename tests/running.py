"""The benchmarks in a process of their own, and the command line in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from qsae_bench.cli import main

ROOT = Path(__file__).parents[1]


def benchmarks(*arguments, **environment):
    """(exit status, output) of ``pytest benchmarks``, which must not show a traceback."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    assert "INTERNALERROR" not in output, output
    return done.returncode, output


def typed(*arguments) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of ``qsae-bench``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()
