"""Where reports go, what happens when they can't, and what is read of the history."""

from __future__ import annotations

import pytest

from documents import run_document
from qsae_bench.errors import QsaeError
from qsae_bench.report.figures import drawing
from qsae_bench.report.html_page import figures_of
from qsae_bench.report.writing import (
    REPORT,
    history_of,
    run_parts,
    write_figures,
    write_run_report,
    write_text,
)
from qsae_bench.results.run_files import write_run

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "q", run_document(["m"], ["int8", "nf4"], (3,)), {})


def test_a_report_is_written_beside_its_run(run, tmp_path):
    assert write_run_report(run, run_document(), "", tmp_path / "q") == ""
    text = (run / REPORT).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert f"library in {tmp_path}/q/cache" in text


def test_a_report_that_can_not_be_made_is_a_warning(run, monkeypatch):
    document = run_document()
    why = f"{run}/gone/report.html: can't be written: No such file or directory"
    assert write_run_report(run / "gone", document, "") == why
    monkeypatch.setattr(drawing, "svg", lambda figure: 1 / 0)
    why = f"{run}/report.html: can't be made: ZeroDivisionError: division by zero"
    assert write_run_report(run, document, "") == why


def test_every_figure_is_a_file_of_each_kind(tmp_path):
    parts = run_parts([(tmp_path, run_document(["m"], ["int8", "nf4"], (3,)))], "")
    names = [figure.name for figure in figures_of(parts)]
    assert write_figures(tmp_path / "figures", parts) == len(names)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }


def test_what_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QsaeError, match="file/x: can't be written: Not a directory"):
        write_text(tmp_path / "file" / "x", "text")
    with pytest.raises(QsaeError, match="file/figures: figures can't be written: Not a directory"):
        write_figures(tmp_path / "file" / "figures", [])


def test_a_history_that_can_not_be_read_is_an_error_only_if_required(tmp_path):
    (tmp_path / "h.sqlite").write_text("this is no database")
    url = f"sqlite:///{tmp_path}/h.sqlite"
    assert history_of(run_document(), url) == {}
    with pytest.raises(QsaeError, match=r"h\.sqlite"):
        history_of(run_document(), url, required=True)
