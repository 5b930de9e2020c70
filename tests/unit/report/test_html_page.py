"""The page: marks with letters, anchors that meet, one file that asks no network, and names that stay text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from documents import GONE, VERDICTS, run_document
from qsae_bench.errors import QsaeError
from qsae_bench.report.blocks import Figure, PagePart, Paragraph
from qsae_bench.report.figures import drawing
from qsae_bench.report.html_page import LETTERS, NUMBER, html_page
from qsae_bench.report.writing import run_parts

HOSTILE = "\"><script>alert(1)</script>|`*_\u202e\n\x1b[31m' & <b onclick=x>"
EVERY = [*VERDICTS, *GONE]


class Tags(HTMLParser):
    """Every tag with its attributes' names, in order; the texts of marks; ids; addresses."""

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


def page_of(document):
    return html_page(run_parts([(Path("runs/x"), document)], ""), "made now")


def test_every_status_has_its_word_and_letter(plain_figures):
    statuses = {("m", f"q{index}"): status for index, status in enumerate(EVERY)}
    marks = Tags(page_of(run_document(["m"], [q for _, q in statuses], (3,), statuses))).marks
    for status in EVERY:
        name = {"oom": "out of memory"}.get(status, status)
        assert f"{LETTERS[name]} {name}" in marks
    assert len(set(LETTERS.values())) == len(LETTERS)


def test_what_failed_stands_before_everything_else(plain_figures):
    document = run_document(["m"], ["int8", "nf4"], (3,), {("m", "nf4"): "fail"})
    text = page_of(document)
    (failed, first_figure) = text.index("What failed"), text.index("<figure")
    assert text.index("red: 1 of 8 gates failed: 1 fail") < failed < first_figure
    between = text[failed:first_figure]
    for shown in ("m-nf4", "kl_divergence", "max 0.3", "measured; margin 2", "(0.40 to 0.60)"):
        assert shown in between


def test_worst_features_link_to_neuronpedia_where_their_sae_is_there(plain_figures):
    document = run_document(["m", "n"], ["nf4"], (3,))
    links = [link for link in Tags(page_of(document)).links if link.startswith("https:")]
    assert len(links) == 20
    assert all(
        re.fullmatch(r"https://www\.neuronpedia\.org/gemma-3-12b/3-gemmascope-2-res-16k/\d+", link)
        for link in links
    )


def test_several_runs_are_one_page_and_no_anchor_is_there_twice(plain_figures):
    one, other = run_document(["a", "A!", "a?"]), run_document(["a"], run_id="second")
    tags = Tags(html_page(run_parts([(Path("x"), one), (Path("y"), other)], ""), "now"))
    assert len(tags.ids) == len(set(tags.ids))
    anchors = [link[1:] for link in tags.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(tags.ids)


@pytest.mark.parametrize("name", ["about", "model", "run"])
def test_names_that_the_page_uses_itself_are_no_anchor_twice(plain_figures, name):
    tags = Tags(page_of(run_document([name, f"{name}-2"], [name, "nf4"], (3,))))
    assert len(tags.ids) == len(set(tags.ids))


def test_a_page_without_figures_has_no_library():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "skipped"})
    text = page_of(document.model_copy(update={"cells": document.cells[1:]}))
    assert "red: nothing was measured; 1 cell skipped" in text
    assert 'id="library"' not in text


def test_a_figure_that_can_not_be_drawn_costs_that_figure(monkeypatch):
    def svg(figure):
        if figure.name == "bad":
            raise QsaeError("figure bad can't be drawn: <why>")
        return "<svg ></svg>"

    monkeypatch.setattr(drawing, "svg", svg)
    monkeypatch.setattr(drawing, "library", lambda folder: "library")
    figures = [
        Figure("good", "a", {"mark": "point"}),
        Figure("bad", "b", {"mark": float("nan")}, "how to read"),
    ]
    text = html_page([PagePart("run", "Run", "", "", [Paragraph("numbers"), *figures], [])], "now")
    assert "figure bad can&#39;t be drawn: &lt;why&gt;" in text
    assert "numbers" in text and "how to read" in text and 'id="library"' in text
    assert re.findall(r'data-figure="(\w+)"', text) == ["good"]


def test_without_the_library_figures_are_static(monkeypatch):
    def library(folder):
        raise ValueError("no bundle")

    monkeypatch.setattr(drawing, "svg", lambda figure: "<svg ></svg>")
    monkeypatch.setattr(drawing, "library", library)
    text = html_page([PagePart("run", "Run", "", "", [Figure("good", "a", {})], [])], "now")
    assert "<svg" in text and "<script" not in text


@pytest.mark.parametrize(
    "text, numeric",
    [
        ("0.144 ± 0.064", True), ("(+5.6 ± 1.8)e-05", True), ("+0.0024 (0.0020 to 0.0030)", True), ("–", True),
        ("0.07739 (+2.58%)", True), ("1,234*", True), ("8.1 GB were not given back", False), ("2 of 3", False),
        ("nf4", False), ("max 0.3", False), ("", False),
    ],
)  # fmt: skip
def test_numbers_are_aligned_right(text, numeric):
    assert bool(NUMBER.fullmatch(text)) == numeric


def test_it_names_no_address_but_its_own_and_neuronpedias(plain_figures):
    text = page_of(run_document())
    assert "default-src 'none'" in text
    outside = [link for link in Tags(text).links if not link.startswith(("#", "data:,"))]
    assert outside and all(link.startswith("https://www.neuronpedia.org/") for link in outside)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def hostile_document(name):
    """A run in which every name and reason holds ``name``."""
    statuses = {("m" + name, "q" + name): "fail", ("m" + name, "p" + name): "error"}
    document = run_document(
        ["m" + name], ["q" + name, "p" + name], (3,), statuses, command="c" + name, run_id="r" + name
    )
    cells = [
        cell.model_copy(update={"warnings": ["w" + name], "reason": "e" + name if cell.reason else ""})
        for cell in document.cells
    ]
    return document.model_copy(
        update={
            "cells": cells,
            "saes": {"m" + name: {"3": "s" + name}},
            "neuronpedia": {"m" + name: {"3": "n" + name}},
        }
    )


def test_hostile_names_change_no_tag(monkeypatch):
    monkeypatch.setattr(drawing, "library", lambda folder: "library")

    def shape(text):
        inside = text[text.index("<body>") : text.index('<script type="text/plain"')]
        # what is drawn depends on how long a name is; in a figure only text and its places may differ
        return [tag for tag in Tags(inside).tags if tag[0] not in ("text", "tspan")]

    hostile, harmless = page_of(hostile_document(HOSTILE)), page_of(hostile_document("x" * 20))
    assert shape(hostile) == shape(harmless)
    assert "<script>alert" not in hostile and "<b onclick" not in hostile
    assert "\u202e" not in hostile and "\x1b" not in hostile
