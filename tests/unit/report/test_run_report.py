"""The report without a browser: what it says of a run, in each format, and that names stay text."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from documents import GONE, VERDICTS, run_document, verdict
from qsae_bench.app.cli.main import main
from qsae_bench.report.figures import drawing
from qsae_bench.report.formats import json_lines, markdown_lines
from qsae_bench.report.html import LETTERS, NUMBER, figures_of, page
from qsae_bench.report.run_report import banner, tone
from qsae_bench.report.writing import REPORT, keep_report, run_parts
from qsae_bench.results.document import RunDocument, write_run
from running import typed

HOSTILE = "\"><script>alert(1)</script>|`*_\u202e\n\x1b[31m' & <b onclick=x>"
EVERY = [*VERDICTS, *GONE]
LIMIT_BYTES = 6_000_000


def parts_of(document, folder="runs/x", history=""):
    return run_parts([(Path(folder), document)], history)


def html_page(document):
    return page(parts_of(document), "made now")


class Tags(HTMLParser):
    """Every tag with its attributes' names, in order; the texts of table cells; ids; addresses."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.marks, self._in_mark = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, tuple(sorted(found))))
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "data", "action") if name in found]
        if "mark" in (found.get("class") or "").split():
            self._in_mark = True
            self.marks.append("")

    def handle_endtag(self, tag):
        if tag in ("a", "span"):
            self._in_mark = False

    def handle_data(self, data):
        if self._in_mark:
            self.marks[-1] += data


# -- what it says -----------------------------------------------------------------------------------


def test_the_matrix_has_every_cell_with_its_word_and_letter():
    statuses = {("m", f"q{index}"): status for index, status in enumerate(EVERY)}
    document = run_document(["m"], [f"q{index}" for index in range(len(EVERY))], (3,), statuses)
    (table,) = [
        block
        for block in parts_of(document)[0].blocks
        if getattr(block, "caption", "").startswith("Models by")
    ]
    (row,) = table.rows
    words = {"oom": "out of memory"}
    assert {q: str(mark) for q, mark in row.items()} == {
        "model": "m", "reference": "–", **{q: words.get(s, s) for (_, q), s in statuses.items()}
    }  # fmt: skip
    marks = Tags(html_page(document)).marks
    for _, status in statuses.items():
        name = words.get(status, status)
        assert f"{LETTERS[name]} {name}" in marks
    assert len(set(LETTERS.values())) == len(LETTERS)


@pytest.mark.parametrize("status", EVERY)
def test_the_banner_tells_each_status(status):
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): status})
    red = status in ("fail", "inconclusive", "invalid", "unset", "oom", "error", "crashed")
    assert tone(document) == ("" if status == "skipped" else "fail" if red else "pass")
    said = banner(document)
    assert said.startswith({"fail": "red: ", "pass": "green: ", "": "nothing was judged: "}[tone(document)])
    assert {"pass": "4 gates passed", "oom": "1 cell out of memory"}.get(status, status) in said


def test_a_test_that_failed_beside_the_gates_makes_it_red():
    document = run_document(failed_tests=[{"test": "b.py::test_overhead[m]", "said": "overhead 1.9 > 1.7"}])
    assert banner(document) == "red: 8 gates passed; 1 other test failed"
    assert "overhead 1.9 &gt; 1.7" in html_page(document)


def test_what_failed_stands_before_everything_else():
    document = run_document(["m"], ["int8", "nf4"], (3,), {("m", "nf4"): "fail"})
    text = html_page(document)
    (failed, first_figure) = text.index("What failed"), text.index("<figure")
    assert text.index("red: 1 of 8 gates failed: 1 fail") < failed < first_figure
    between = text[failed:first_figure]
    for shown in ("m-nf4", "kl_divergence", "max 0.3", "measured; margin 2", "(0.40 to 0.60)"):
        assert shown in between


def test_worst_features_lead_to_neuronpedia_where_their_sae_is_there():
    document = run_document(["m", "n"], ["nf4"], (3,))
    links = [link for link in Tags(html_page(document)).links if link.startswith("https:")]
    assert len(links) == 20
    assert all(
        re.fullmatch(r"https://www\.neuronpedia\.org/gemma-3-12b/3-gemmascope-2-res-16k/\d+", link)
        for link in links
    )


def test_several_runs_are_one_page_and_no_anchor_is_twice():
    one, other = run_document(["a", "A!", "a?"]), run_document(["a"], run_id="second")
    tags = Tags(page(run_parts([(Path("x"), one), (Path("y"), other)], ""), "now"))
    assert len(tags.ids) == len(set(tags.ids))
    anchors = [link[1:] for link in tags.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(tags.ids)


def test_random_weights_have_no_quality():
    text = html_page(run_document(synthetic=True))
    assert "timings and memory are real, nothing else is" in text
    assert "Does it still predict" not in text and "What does it cost?" in text


def test_an_old_run_without_what_came_later_has_a_report():
    document = run_document().model_dump()
    for name in ("neuronpedia", "failed_tests"):
        del document[name]
    for cell in document["cells"]:
        for layer in cell["layers"].values():
            del layer["survival_curve"]
    names = [figure.name for figure in figures_of(parts_of(RunDocument.model_validate(document)))]
    assert not any(name.endswith("survival") for name in names)
    assert any(name.endswith("loss") for name in names)


def test_nothing_measured_is_a_page_too():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "skipped"})
    gone = document.cells[1].model_copy(update={"quantization": "reference"})
    text = html_page(document.model_copy(update={"cells": [gone, document.cells[1]]}))
    assert "red: nothing was measured; 2 cells skipped" in text
    assert 'id="library"' not in text, "no figure, no library"


def test_a_night_that_judged_only_references_is_not_green():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "skipped"})
    gate = verdict("cross_entropy", None)
    reference = document.cells[0].model_dump() | {"verdicts": [gate]}
    changed = RunDocument.model_validate(
        document.model_dump() | {"cells": [reference, document.cells[1].model_dump()]}
    )
    assert banner(changed) == "red: only references were measured, and no gate; 1 cell skipped"
    alone = changed.model_copy(update={"cells": changed.cells[:1]})
    assert banner(alone) == "green: 1 gate passed", "it was all that was asked for"


def test_what_failed_is_in_the_order_of_gravity():
    statuses = {("m", "a"): "inconclusive", ("m", "b"): "unset", ("m", "c"): "fail", ("m", "d"): "invalid"}
    document = run_document(["m"], ["a", "b", "c", "d"], (3,), statuses)
    (table,) = [
        b for b in parts_of(document)[0].blocks if getattr(b, "caption", "").startswith("Gates that failed")
    ]
    assert [str(row["verdict"]) for row in table.rows] == ["invalid", "fail", "unset", "inconclusive"]


@pytest.mark.parametrize("name", ["about", "model", "run"])
def test_names_that_the_page_uses_itself(name):
    document = run_document([name, f"{name}-2"], [name, "nf4"], (3,))
    tags = Tags(html_page(document))
    assert len(tags.ids) == len(set(tags.ids))
    rows = parts_of(document)[0].blocks[0].rows
    assert [next(iter(row.values())) for row in rows] == [name, f"{name}-2"]
    assert all(str(row[name]) == "pass" for row in rows)


@pytest.mark.parametrize(
    "text, numeric",
    [
        ("0.144 ± 0.064", True), ("(+5.6 ± 1.8)e-05", True), ("+0.0024 (0.0020 to 0.0030)", True), ("–", True),
        ("0.07739 (+2.58%)", True), ("1,234*", True), ("8.1 GB were not given back", False), ("2 of 3", False),
        ("nf4", False), ("max 0.3", False), ("", False),
    ],
)  # fmt: skip
def test_numbers_stand_right(text, numeric):
    assert bool(NUMBER.fullmatch(text)) == numeric


# -- one file, no network, names stay text ----------------------------------------------------------


def test_it_names_no_address_but_its_own_and_neuronpedias():
    text = html_page(run_document())
    assert "default-src 'none'" in text
    outside = [link for link in Tags(text).links if not link.startswith(("#", "data:,"))]
    assert outside and all(link.startswith("https://www.neuronpedia.org/") for link in outside)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_hostile_names_change_no_tag():
    def made(name):
        statuses = {("m" + name, "q" + name): "fail", ("m" + name, "p" + name): "error"}
        document = run_document(
            ["m" + name], ["q" + name, "p" + name], (3,), statuses, command="c" + name, run_id="r" + name
        )
        cells = [
            c.model_copy(update={"warnings": ["w" + name], "reason": "e" + name if c.reason else ""})
            for c in document.cells
        ]
        update = {
            "cells": cells,
            "saes": {"m" + name: {"3": "s" + name}},
            "neuronpedia": {"m" + name: {"3": "n" + name}},
        }
        return document.model_copy(update=update)

    def shape(text):
        inside = text[text.index("<body>") : text.index('<script type="text/plain"')]
        # what is drawn depends on how long a name is; in a figure only text and its places may differ
        return [tag for tag in Tags(inside).tags if tag[0] not in ("text", "tspan")]

    hostile, harmless = html_page(made(HOSTILE)), html_page(made("x" * 20))
    assert shape(hostile) == shape(harmless)
    assert "<script>alert" not in hostile and "<b onclick" not in hostile
    assert "\u202e" not in hostile and "\x1b" not in hostile
    out = "\n".join(markdown_lines(parts_of(made(HOSTILE)), "figures"))
    same = "\n".join(markdown_lines(parts_of(made("x" * 20)), "figures"))
    rendered = [
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text) for text in (out, same)
    ]
    # a name's underscores and stars are text, so bold and italics are the page's own
    assert Tags(rendered[0]).tags == Tags(rendered[1]).tags


def test_a_figure_as_a_file_holds_a_hostile_name_as_text():
    document = run_document(["m"], [f"q{HOSTILE}"])
    for figure in figures_of(parts_of(document)):
        as_svg, as_png = drawing.files(figure)
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(as_svg).iter()}
        assert tags <= {"svg", "g", "path", "line", "text", "rect", "defs", "clipPath", "title"}
        assert as_png.startswith(b"\x89PNG")


# -- the other formats ------------------------------------------------------------------------------


def test_json_says_what_the_page_says():
    document = run_document(["m"], ["int8", "nf4"], (3,), {("m", "nf4"): "fail"})
    found = json.loads("\n".join(json_lines(parts_of(document))), parse_constant=pytest.fail)
    (part,) = found["parts"]
    assert (part["tone"], part["banner"]) == ("fail", banner(document))
    assert part["blocks"][0]["rows"] == [{"model": "m", "reference": "–", "int8": "pass", "nf4": "fail"}]
    figures = [b for s in part["sections"] for b in s["blocks"] if b["kind"] == "figure"]
    assert [one["name"] for one in figures] == [figure.name for figure in figures_of(parts_of(document))]
    (loss,) = [one for one in figures if one["name"].endswith("loss")]
    kld = loss["vega_lite"]["hconcat"][1]["data"]["values"]
    assert {row["q"]: row["value"] for row in kld} == {
        cell.quantization: cell.metrics["kl_divergence"].value for cell in document.cells[1:]
    }


def test_json_stays_json_whatever_a_reason_holds():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "error"})
    cells = [
        c.model_copy(update={"reason": "a\u2028b\x85c\u202ed\ne" if c.reason else ""})
        for c in document.cells
    ]
    text = "\n".join(json_lines(parts_of(document.model_copy(update={"cells": cells}))))
    assert "a\u2028b\x85c\u202ed\ne" in str(json.loads(text)) or "\\u2028" in repr(json.loads(text))
    assert text.isascii()


def test_markdown_has_the_tables_and_points_at_the_figures():
    parts = parts_of(run_document(["m"], ["int8", "nf4"], (3,)))
    text = "\n".join(markdown_lines(parts, "figures"))
    assert "| m | – | pass | pass |" in text
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert re.findall(r'<img src="figures/([\w-]+)\.svg"', html) == [
        figure.name for figure in figures_of(parts)
    ]
    assert "![" not in "\n".join(markdown_lines(parts))


# -- the command, and what pytest leaves ------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "q", run_document(["m"], ["int8", "nf4"], (3,)), {})


def test_the_command_writes_a_page_and_its_figures(run, tmp_path):
    status, out, err = typed(
        "report", run, "-o", tmp_path / "r.html", "--figures", tmp_path / "figures", "--history", "none"
    )
    assert (status, err) == (0, "")
    assert "open it in a browser" in out
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    names = [figure.name for figure in figures_of(parts_of(run_document(["m"], ["int8", "nf4"], (3,))))]
    assert f"{len(names)} figures" in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("svg", "png")
    }
    assert len(text.encode()) < LIMIT_BYTES


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "nowhere/run.json: can't be read: No such file or directory"),
        (["--compare", "nf4", "nf4"], "nf4 is compared with itself"),
        (["--compare", "nf4", "int7"], "unknown quantization 'int7'"),
        (["-o", "missing/r.html"], "missing/r.html: can't be written: No such file or directory"),
    ],
)  # fmt: skip
def test_what_can_not_be_made_is_one_line(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    named = [] if arguments[0] == "nowhere" else [run]
    status, out, err = typed("report", *named, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_report_that_can_not_be_made_is_a_warning(run, monkeypatch):
    document = run_document()
    assert keep_report(run, document, "") == ""
    assert (run / REPORT).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (
        keep_report(run / "gone", document, "")
        == f"{run}/gone/report.html: can't be written: No such file or directory"
    )
    monkeypatch.setattr("qsae_bench.report.figures.renderer.slim", lambda text, font: 1 / 0)
    assert (
        keep_report(run, document, "")
        == f"{run}/report.html: can't be made: ZeroDivisionError: division by zero"
    )


def test_a_history_that_is_not_there_leaves_the_report_without_nights(run, tmp_path):
    assert (
        main(["report", str(run), "-o", str(tmp_path / "r.html"), "--qsae-dir", str(tmp_path / "none")])
        == 0
    )
    assert not (tmp_path / "none").exists()
    assert "Night by night" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_history_that_was_named_and_can_not_be_read_is_an_error(run, tmp_path):
    (tmp_path / "h.sqlite").write_text("this is no database")
    status, out, err = typed(
        "report", run, "-o", tmp_path / "r.html", "--history", f"sqlite:///{tmp_path}/h.sqlite"
    )
    assert (status, out) == (2, "")
    assert "h.sqlite" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_the_latest_run_and_a_bare_id_are_looked_for_in_the_folder_that_is_named(run, tmp_path):
    shared = ("-o", tmp_path / "r.html", "--qsae-dir", tmp_path / "q", "--history", "none")
    for arguments in ((), (run.name,)):
        assert typed("report", *arguments, *shared)[0] == 0
        assert run.name in (tmp_path / "r.html").read_text(encoding="utf-8")
        (tmp_path / "r.html").unlink()


# -- large ------------------------------------------------------------------------------------------


NOMINAL_SECONDS = 0.4
"""that the work below takes on the machine this was written on, when it is quiet"""


def slowness():
    """How much slower than that this machine is now, never less than 1: shared ones lose a factor of three."""

    def work():
        started = time.perf_counter()
        sum(i * i % 7 for i in range(5_000_000))
        return time.perf_counter() - started

    return max(1.0, min(work() for _ in range(3)) / NOMINAL_SECONDS)


@pytest.mark.slow
@pytest.mark.alone
def test_ten_models_by_twelve_quantizations_by_four_layers(tmp_path):
    """Under 6 MB, and in under 10 s, by the command; the figures' library was kept by an earlier report."""
    models, quantizations = [f"model_{i}" for i in range(10)], [f"quant_{i}" for i in range(12)]
    statuses = {
        (f"model_{i}", f"quant_{j}"): EVERY[(i + j) % len(EVERY)]
        for i in range(10)
        for j in range(0, 12, 5)
    }
    folder = write_run(tmp_path / "q", run_document(models, quantizations, (9, 17, 22, 29), statuses), {})
    small = write_run(tmp_path / "q", run_document(run_id="small"), {})
    shared = ("-o", tmp_path / "r.html", "--qsae-dir", tmp_path / "q", "--history", "none")
    assert typed("report", small, *shared)[0] == 0
    limit = 10 * slowness()
    started = time.perf_counter()
    status, out, err = typed("report", folder, *shared)
    taken = time.perf_counter() - started
    print(f"{taken:.1f} s of {limit:.1f}: {out}")
    assert (status, err) == (0, "")
    assert taken < limit
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT_BYTES
    assert text.count("<figure") == 80
