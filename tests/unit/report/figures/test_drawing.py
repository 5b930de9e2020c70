"""Drawing: axes, ticks and units are in the SVG, nothing is asked of a network, and failures are one line."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import vl_convert

from qsae_bench.errors import QsaeError
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import drawing
from qsae_bench.report.figures.features import survival_figure
from qsae_bench.report.figures.loss import loss_figure

SMALL = Figure("small", "a point", {"data": {"values": [{"x": 1}]}, "mark": "point"})


def texts(svg):
    return [one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("}text")]


def test_units_stand_at_the_axes(cells):
    found = texts(drawing.svg(loss_figure("x", cells)))
    assert {"perplexity_increase_pct (%)", "kl_divergence (nats)"} <= set(found)


def test_ticks_are_labelled_with_what_they_are(cells):
    found = texts(drawing.svg(survival_figure("x", cells)))
    ticks = found[found.index("0") : found.index("correlation r above")]
    assert {"0.5", "0.9", "0.95", "1"} & set(ticks) >= {"0.9", "1"}
    assert ticks.count("0.9") == 1


def test_a_file_of_its_own_is_on_white():
    svg, png = drawing.svg_and_png(SMALL)
    assert 'fill="white"' in svg and png.startswith(b"\x89PNG")
    assert 'fill="white"' not in drawing.svg(SMALL)


def test_a_hostile_name_is_text_in_the_drawing():
    name = "\"><script>alert(1)</script>' & <b onclick=x>"
    spec = {"data": {"values": [{"q": name}]}, "mark": "point", "encoding": {"y": {"field": "q"}}}
    svg = drawing.svg(Figure("x", "x", spec))
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "g", "path", "line", "text", "rect", "defs", "clipPath", "title"}
    assert any("<script>" in (text or "") for text in texts(svg))


@pytest.mark.parametrize(
    "spec", [{"mark": 7}, {"data": {"values": [{"x": float("nan")}]}, "mark": "point"}], ids=["mark", "nan"]
)
def test_a_specification_that_means_nothing_is_one_line(spec):
    with pytest.raises(QsaeError, match=r"figure x can't be drawn: \S") as caught:
        drawing.svg(Figure("x", "x", spec))
    assert len(str(caught.value).splitlines()) == 1


def test_data_are_not_fetched():
    spec = {"data": {"url": "https://example.org/data.json"}, "mark": "point"}
    with pytest.raises(QsaeError, match="can't be drawn"):
        drawing.svg(Figure("x", "x", spec))


def test_the_library_is_cached_between_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: f"first {snippet}")
    first = drawing.library(tmp_path / "cache")
    assert first == drawing.pack("first window.vegaEmbed = vegaEmbed;")
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: "another")
    assert drawing.library(tmp_path / "cache") == first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert drawing.library() == drawing.pack("another"), "stored nowhere, made again"
