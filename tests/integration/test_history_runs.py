"""The history at the end of a run and in a failing gate's message, with the embedded model."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import pytest

import warm
from builders import messages, write_session
from qsae_bench.app.cli import main as cli
from qsae_bench.gate.thresholds import Threshold, Thresholds
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Selection
from qsae_bench.results.document import read_run
from qsae_bench.results.history.store import record_run
from qsae_bench.results.history.url import default_url

SECRET = "tr0ub4dor"
TOKENS = 2032


def benchmarks(folder, *arguments, **environment):
    """One quantization's perplexity, in a process of its own: (exit status, output, the run's folder)."""
    asked = [
        "-q", "-p", "no:cacheprovider",
        "--models", "tiny_gemma3", "--quantizations", "nf4", "-k", "perplexity",
        "--tokens", str(TOKENS), "--max-tokens", str(TOKENS), "--layers", "3", "--qsae-dir", str(folder),
        "--junit-xml", str(folder / "junit.xml"), *arguments,
    ]  # fmt: skip
    done = warm.run(asked, os.environ | environment, timeout=300)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    return done.returncode, output, (folder / "latest").resolve()


def recorded(folder):
    """The runs in the history of a directory."""
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite")) as connection:
        return [row[0] for row in connection.execute("select run_id from qsae_runs")]


def test_a_run_is_recorded_unless_the_history_is_switched_off(tmp_path):
    status, output, run = benchmarks(tmp_path)
    assert status == 0, output
    assert recorded(tmp_path) == [run.name]
    assert cli.main(["history", "--qsae-dir", str(tmp_path), "import", str(tmp_path)]) == 0
    assert recorded(tmp_path) == [run.name]  # the document that was recorded is the one in the folder
    status, output, _ = benchmarks(tmp_path, QSAE_HISTORY="none")
    assert status == 0, output
    assert recorded(tmp_path) == [run.name]


def test_a_lost_server_costs_no_run_and_shows_no_password(tmp_path):
    status, output, run = benchmarks(tmp_path, "--history", f"postgresql://me:{SECRET}@127.0.0.1:1/runs")
    assert status == 3, output
    (line,) = [line for line in output.splitlines() if "the history can't be used" in line]
    assert "postgresql://me:***@127.0.0.1:1/runs" in line
    assert f"`qsae-bench history import {run}` adds it later" in line
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert run / "run.json" in written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in output
    assert read_run(run).command.endswith("--history 'postgresql://me:***@127.0.0.1:1/runs'")
    assert cli.main(["history", "--qsae-dir", str(tmp_path), "import", str(run)]) == 0
    assert recorded(tmp_path) == [run.name]


def test_a_url_of_no_history_is_a_wrong_option(tmp_path):
    status, output, _ = benchmarks(tmp_path, "--history", f"mysql://me:{SECRET}@h/d")
    assert status == 2
    assert "ERROR: --history: not the URL of a history" in output
    assert SECRET not in output.replace(f"--history mysql://me:{SECRET}@h/d", "")


# -- what moved -----------------------------------------------------------------------------------


def gated_run(folder, bits, bound=0.004):
    """Measure a quantization called mine, gate it, record the run; the failing gate's message or ''."""
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    url, entries = default_url(folder), folder / "quantizations.toml"
    entries.write_text(f'[quantizations.mine]\nbackend = "rtn"\noptions = {{ bits = {bits} }}\n')
    registry = load_registry((entries,))
    limit = Threshold("kl_divergence", "max", bound, "a test", table="defaults.mine")
    selection = Selection(
        models=("tiny_gemma3",), quantizations=("mine",), layers="3", tokens=TOKENS, max_tokens=TOKENS
    )
    session = LocalSession(
        SessionOptions(
            registry, Thresholds({("defaults", "mine"): {"kl_divergence": limit}}), folder, "test",
            selection=selection, on_warning=lambda line: None, history=url,
        )
    )  # fmt: skip
    (cell,) = registry.select(selection)
    try:
        session.require(cell)
        message = messages(session, cell, ("kl_divergence",))
        written, run = write_session(session)
    finally:
        session.close()
    assert record_run(url, written, run) == ""
    (verdict,) = next(one for one in written.cells if one.quantization == "mine").verdicts
    assert f"moved      {verdict.attribution}" in message or not message
    return message


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    """A directory with one run, whose gate passed."""
    folder = tmp_path_factory.mktemp("accepted") / "qsae"
    folder.mkdir()
    assert gated_run(folder, 4) == ""
    return folder


@pytest.fixture
def earlier(accepted, tmp_path):
    """``earlier(change)``: a copy of that directory, its history changed by an SQL statement."""

    def copy(change=""):
        folder = tmp_path / "qsae"
        shutil.copytree(accepted, folder, symlinks=True)
        with contextlib.closing(sqlite3.connect(folder / "history.sqlite")) as connection, connection:
            connection.execute(change or "select 1")
        return folder

    return copy


def test_a_quantization_that_lost_a_bit_is_what_moved(earlier):
    message = gated_run(earlier(), 3)
    assert "kl_divergence FAIL" in message
    assert "moved      the quantized model: kl_divergence 0.00" in message
    assert "the reference (cross_entropy" in message
    assert "did not; against run" in message


def test_a_reference_that_moved_is_what_moved(earlier):
    """The earlier reference, as the history has it, is made another one than today's."""
    folder = earlier(
        "update qsae_values set value = value * 1.01 "
        "where metric = 'cross_entropy' and quantization = 'reference'"
    )
    message = gated_run(folder, 4, bound=1e-5)
    assert "moved      the reference: cross_entropy 1.5" in message
    assert "the quantized model (cross_entropy" in message


def test_another_version_is_named_with_what_it_moved(earlier):
    folder = earlier("update qsae_runs set versions = json_set(versions, '$.transformers', '5.0.0')")
    message = gated_run(folder, 3)
    assert "moved      the setup: transformers 5.0.0 → " in message
    assert "with it the quantized model (kl_divergence" in message
