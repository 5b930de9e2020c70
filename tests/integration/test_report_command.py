"""``qsae-bench report``, and what ``pytest benchmarks`` leaves beside a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import warm
from documents import run_document
from qsae_bench.report.figures import drawing
from qsae_bench.report.html_page import figures_of
from qsae_bench.report.job_summary import PAGE, STEP_SUMMARY
from qsae_bench.report.writing import run_parts
from qsae_bench.results.document import RunDocument
from qsae_bench.results.run_files import write_run
from running import typed

LIMIT_BYTES = 8_000_000


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "q", run_document(["m"], ["int8", "nf4"], (3,)), {})


@pytest.fixture
def plain_figures(monkeypatch):
    """Figures are small and cost nothing, where their drawing is not what is tested."""
    monkeypatch.setattr(drawing, "svg", lambda figure: "<svg ></svg>")
    monkeypatch.setattr(drawing, "library", lambda folder: "library")


def figures(document):
    return list(figures_of(run_parts([(Path("x"), document)], "")))


def test_the_command_writes_a_page_and_its_figures(run, tmp_path):
    status, out, err = typed(
        "report", run, "-o", tmp_path / "r.html", "--figures", tmp_path / "figures", "--history", "none"
    )
    assert (status, err) == (0, "")
    assert "open it in a browser" in out
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    names = [figure.name for figure in figures(run_document(["m"], ["int8", "nf4"], (3,)))]
    assert f"{len(names)} figures" in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    assert text.count("<svg ") == len(names)
    assert len(text.encode()) < LIMIT_BYTES


def test_every_figure_draws_with_one_row_and_without_intervals():
    bare = run_document(["m"], ["nf4"], (3,)).model_dump()
    for cell in bare["cells"]:
        for scope in (cell["metrics"], *(layer["metrics"] for layer in cell["layers"].values())):
            for value in scope.values():
                value |= {"low": None, "high": None}
    found = figures(RunDocument.model_validate(bare))
    assert len(found) >= 7
    for figure in found:
        assert "<svg" in drawing.svg(figure)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["nowhere"], "nowhere/run.json: can't be read: No such file or directory"),
        (["--compare", "nf4", "nf4"], "nf4 is compared with itself"),
        (["--compare", "nf4", "int7"], "unknown quantization 'int7'"),
        (["-o", "missing/r.html"], "missing/r.html: can't be written: No such file or directory"),
    ],
)  # fmt: skip
def test_what_can_not_be_made_is_one_line(run, tmp_path, monkeypatch, plain_figures, arguments, reason):
    monkeypatch.chdir(tmp_path)
    named = [] if arguments[0] == "nowhere" else [run]
    status, out, err = typed("report", *named, *arguments)
    assert (status, out) == (2, "")
    assert reason in err
    assert len(err.splitlines()) == 1


def test_without_a_history_the_report_has_none_and_makes_none(run, tmp_path, plain_figures):
    status, _, _ = typed("report", run, "-o", tmp_path / "r.html", "--qsae-dir", tmp_path / "none")
    assert status == 0
    assert not (tmp_path / "none").exists()
    assert "Run by run" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_history_that_was_named_and_can_not_be_read_is_an_error(run, tmp_path, plain_figures):
    (tmp_path / "h.sqlite").write_text("this is no database")
    status, out, err = typed(
        "report", run, "-o", tmp_path / "r.html", "--history", f"sqlite:///{tmp_path}/h.sqlite"
    )
    assert (status, out) == (2, "")
    assert "h.sqlite" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_the_latest_run_and_a_bare_id_are_looked_for_in_the_folder_that_is_named(
    run, tmp_path, plain_figures
):
    shared = ("-o", tmp_path / "r.html", "--qsae-dir", tmp_path / "q", "--history", "none")
    for arguments in ((), (run.name,)):
        assert typed("report", *arguments, *shared)[0] == 0
        assert run.name in (tmp_path / "r.html").read_text(encoding="utf-8")
        (tmp_path / "r.html").unlink()


def test_a_run_writes_its_summary_twice_and_an_unwritable_one_only_warns(tmp_path):
    def benchmarks(step):
        asked = [
            "-p", "no:cacheprovider", "--models", "tiny_gemma3",
            "--quantizations", "reference", "-k", "perplexity", "--tokens", "2032", "--qsae-dir", str(tmp_path / "q"),
        ]  # fmt: skip
        return warm.run(asked, os.environ | {STEP_SUMMARY: str(step)}, timeout=300)

    done = benchmarks(tmp_path / "step.md")
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "step.md").read_text(encoding="utf-8")
    assert written == (tmp_path / "q" / "latest" / PAGE).read_text(encoding="utf-8")
    assert written.startswith("## qsae-bench: green")
    assert "--models tiny_gemma3 --quantizations reference" in written
    done = benchmarks(tmp_path / "missing" / "step.md")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if STEP_SUMMARY in line]
    assert line.startswith(f"warning: {STEP_SUMMARY}: can't be written")
