"""The benchmarks in a process of their own, and the command line in this one."""

from __future__ import annotations

import contextlib
import io
import os

import warm
from qsae_bench.app.cli.main import main


def benchmarks(*arguments, **environment):
    """(exit status, output) of ``pytest benchmarks``, which must not show a traceback."""
    done = warm.run(["-p", "no:cacheprovider", *arguments], os.environ | environment, timeout=300)
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
