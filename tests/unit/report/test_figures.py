"""Figures: their numbers are the run's, their colours can be told apart, slimming changes nothing that is seen."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import qsae_bench.report.html as html
from documents import run_document
from qsae_bench.errors import QsaeError
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import drawing
from qsae_bench.report.figures.cost import pareto_figure
from qsae_bench.report.figures.features import survival_figure
from qsae_bench.report.figures.loss import loss_figure, stability_figure
from qsae_bench.report.figures.nights import nights_figure
from qsae_bench.report.figures.reconstruction import definitions_figure, fvu_figure, resolution_figure
from qsae_bench.report.figures.renderer import WORTH_A_PROCESS
from qsae_bench.report.figures.style import CONFIG, FONT, PALETTE, by_name
from qsae_bench.report.figures.svg import slim
from qsae_bench.report.writing import run_parts
from qsae_bench.results.history.queries import Night, Series
from qsae_bench.stats.bootstrap import Estimate


@pytest.fixture(scope="module")
def document():
    return run_document(["m"], ["int8", "nf4", "fp4"], (3, 9))


@pytest.fixture(scope="module")
def cells(document):
    return [cell for cell in document.cells if cell.quantization != "reference"]


def drawn(figure):
    return drawing.Drawings([figure]).by_name()[figure.name]


def rows_in(spec):
    """Every row of data in a specification."""
    if isinstance(spec, dict):
        if isinstance(spec.get("values"), list):
            yield from (row for row in spec["values"] if isinstance(row, dict))
        for value in spec.values():
            yield from rows_in(value)
    elif isinstance(spec, list):
        for one in spec:
            yield from rows_in(one)


def test_values_intervals_and_thresholds_are_the_runs(cells):
    spec = loss_figure("x", cells).spec
    shown = [row for row in rows_in(spec) if "q" in row]
    expected = [
        (c.quantization, v.value, v.low, v.high, next(one.bound for one in c.verdicts if one.metric == key))
        for key in ("perplexity_increase_pct", "kl_divergence")
        for c in cells
        for v in [c.metrics[key]]
    ]
    assert [(r["q"], r["value"], r["low"], r["high"], r["bound"]) for r in shown] == expected


def test_the_reference_is_a_band_on_the_cells_own_tokens(document, cells):
    reference = document.cells[0]
    beside = {"metrics": {}, "layers": {"3": {"metrics": {"fvu": {"value": 0.5, "low": 0.4, "high": 0.6}}}}}
    extended = type(cells[0]).model_validate(cells[0].model_dump() | {"beside": beside})
    rows = [
        row for row in rows_in(fvu_figure("x", [extended, cells[1]], reference).spec) if "ref_value" in row
    ]
    own = reference.layers["3"].metrics["fvu"]
    assert [(r["ref_low"], r["ref_value"], r["ref_high"]) for r in rows if r["layer"] == 3] == [
        (0.4, 0.5, 0.6), (own.low, own.value, own.high)
    ]  # fmt: skip


def test_the_definitions_change_is_relative_to_the_reference(document, cells):
    rows = [
        row
        for row in rows_in(definitions_figure("x", cells, document.cells[0]).spec)
        if "definition" in row
    ]
    assert len(rows) == 3 * 2 * 3
    of_nf4 = {r["definition"]: r["change"] for r in rows if r["q"] == "nf4" and r["layer"] == 9}
    before, after = (c.layers["9"].metrics for c in (document.cells[0], cells[1]))
    for key, change in of_nf4.items():
        assert change == pytest.approx(100 * (after[key].value - before[key].value) / before[key].value)


def test_the_survival_curve_is_drawn_whole(cells):
    rows = [row for row in rows_in(survival_figure("x", cells).spec) if "t" in row]
    assert [(r["q"], r["layer"]) for r in rows] == [
        (c.quantization, layer) for c in cells for layer in (3, 9)
    ]
    assert rows[0]["of features"] == cells[0].layers["3"].survival_curve.share


def test_the_front_is_the_one_that_no_other_beats(cells):
    planes = [
        row
        for row in rows_in(pareto_figure("x", [(c.quantization, c) for c in cells]).spec)
        if "front" in row
    ]
    bits = planes[: len(cells)]  # KLD against bits a weight
    for one in bits:
        beaten = any(
            o["quality"] <= one["quality"] and o["cost"] <= one["cost"] and (o["quality"], o["cost"]) != (one["quality"], one["cost"])
            for o in bits
        )  # fmt: skip
        assert one["front"] == (not beaten)


def test_nights_are_drawn_with_their_changes_of_level():
    values = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 2.0, 2.01, 1.99, 2.0, 2.01, 1.98]
    nights = tuple(
        Night(f"r{i}", f"2026-11-{i + 1:02}T02:00:00", Estimate(v, v - 0.05, v + 0.05), 1000, "pass", {})
        for i, v in enumerate(values)
    )
    series = Series("m", "nf4", "kl_divergence", None, "cpu", "c", False, "", 16, "", nights)
    rows = [row for row in rows_in(nights_figure("x", [series]).spec) if "night" in row]
    assert [row["value"] for row in rows] == values
    assert [row["night"] for row in rows if row["level"] == "changed"] == [7]
    single = Series("m", "nf4", "kl_divergence", None, "cpu", "c", False, "", 16, "", nights[:1])
    assert nights_figure("x", [single]) is None


def test_what_a_run_lacks_is_no_figure(cells):
    bare = [cell.model_copy(update={"metrics": {}, "layers": {}, "stability": []}) for cell in cells]
    assert loss_figure("x", bare) is resolution_figure("x", bare) is survival_figure("x", bare) is None
    assert pareto_figure("x", [(c.quantization, c) for c in bare]) is None


def test_units_stand_at_the_axes(cells):
    for figure in (loss_figure("x", cells), stability_figure("x", cells)):
        texts = "".join(ElementTree.fromstring(drawn(figure)).itertext())
        assert "perplexity_increase_pct (%)" in texts and "kl_divergence (nats)" in texts


def test_ticks_are_labelled_with_what_they_are(cells):
    root = ElementTree.fromstring(drawn(survival_figure("x", cells)))
    texts = [one.text for one in root.iter() if one.tag.endswith("}text")]
    ticks = texts[texts.index("0") : texts.index("correlation r above")]
    assert {"0.5", "0.9", "0.95", "1"} & set(ticks) >= {"0.9", "1"}
    assert ticks.count("0.9") == 1


# -- colours ----------------------------------------------------------------------------------------


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def luminance(rgb):
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def contrast(one, other):
    """WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(linear(one)), luminance(linear(other))), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes():
    css = html._asset("report.css")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (light, dark)]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_colour_stands_off_its_ground(theme):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for colour in PALETTE:
        assert contrast(colour, theme["page"]) >= 3, "WCAG 1.4.11: graphical objects"
    for name in ("text", "quiet", "link"):
        assert contrast(theme[name], theme["page"]) >= 4.5
    for name in ("pass", "fail", "inconclusive", "suspicious", "invalid", "unset"):
        assert contrast(theme[name], theme[f"{name}-soft"]) >= 4.5, "WCAG 1.4.3: text"


DICHROMATS = {
    # Viénot, Brettel & Mollon 1999, on linear RGB
    "protanope": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deuteranope": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colour_blind_readers_tell_the_colours_apart(eyes):
    def seen(colour):
        rgb = linear(colour)
        made = [max(0.0, sum(w * c for w, c in zip(row, rgb, strict=True))) for row in DICHROMATS[eyes]]
        x = (0.4124 * made[0] + 0.3576 * made[1] + 0.1805 * made[2]) / 0.9505
        y = luminance(made)
        z = (0.0193 * made[0] + 0.1192 * made[1] + 0.9505 * made[2]) / 1.089
        f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
        return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])

    for one, other in itertools.combinations(PALETTE, 2):
        distance = sum((a - b) ** 2 for a, b in zip(seen(one), seen(other), strict=True)) ** 0.5
        assert distance > 10, (one, other)


def test_thirty_names_are_told_apart_by_colour_and_shape():
    names = [f"q{i}" for i in range(30)]
    encoding = by_name(names)
    pairs = set(zip(encoding["color"]["scale"]["range"], encoding["shape"]["scale"]["range"], strict=True))
    lines = set(
        zip(
            encoding["color"]["scale"]["range"],
            map(tuple, encoding["strokeDash"]["scale"]["range"]),
            strict=True,
        )
    )
    assert len(pairs) == len(lines) == 30


# -- drawing ----------------------------------------------------------------------------------------


def painted(svg):
    """Texts, and how many elements leave a trace."""
    root = ElementTree.fromstring(svg)
    texts = [one.text for one in root.iter() if one.tag.endswith("}text") and one.text]
    traces = 0
    for parent in root.iter():
        for one in parent:
            if one.tag.rpartition("}")[2] in ("path", "line", "rect") and one.get("display") != "none":
                stroke, fill = one.get("stroke"), one.get("fill")
                traces += bool(
                    (stroke and stroke != "none") or (fill and fill not in ("none", "transparent"))
                )
    return texts, traces


def test_slimming_leaves_all_that_is_seen(document):
    for figure in figures(document):
        whole = drawing.render(drawing._text(figure), json.dumps(CONFIG))
        small = slim(whole, FONT)
        assert painted(small) == painted(whole)
        assert len(small) < 0.7 * len(whole)


def figures(document):
    return list(html.figures_of(run_parts([(Path("x"), document)], "")))


def test_every_figure_draws_with_one_row_and_without_intervals():
    bare = run_document(["m"], ["nf4"], (3,)).model_dump()
    for cell in bare["cells"]:
        for scope in (cell["metrics"], *(layer["metrics"] for layer in cell["layers"].values())):
            for value in scope.values():
                value |= {"low": None, "high": None}
    found = figures(type(run_document()).model_validate(bare))
    assert len(found) >= 7
    for figure in found:
        assert "<svg" in drawn(figure)


def test_many_figures_drawn_by_several_processes_are_the_same_as_one_by_one(document):
    found = figures(document)
    several = [
        Figure(f"{figure.name}-{i}", figure.title, figure.spec) for i in range(4) for figure in found
    ]
    assert len(several) > 2 * WORTH_A_PROCESS
    together = drawing.Drawings(several)
    apart = {figure.name: drawn(figure) for figure in found}
    by_name = together.by_name()
    assert list(by_name) == [figure.name for figure in several]
    for figure in several:
        assert by_name[figure.name] == apart[figure.name.rpartition("-")[0]]


@pytest.mark.parametrize("command", [["false"], ["echo", "[1"], ["/nowhere/python"]])
def test_without_processes_they_are_drawn_all_the_same(document, monkeypatch, command):
    found = figures(document)[:1] * (2 * WORTH_A_PROCESS)
    started = []

    def begin(arguments, **options):
        started.append(arguments)
        return subprocess_popen(command, **options)

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr("qsae_bench.report.figures.renderer.os.cpu_count", lambda: 2)
    monkeypatch.setattr("qsae_bench.report.figures.renderer.subprocess.Popen", begin)
    made = drawing.Drawings(found).by_name()
    assert started
    assert made == {found[0].name: drawn(found[0])}


def test_a_specification_that_means_nothing_is_one_line():
    for count in (1, 2 * WORTH_A_PROCESS):
        with pytest.raises(QsaeError, match=r"a figure can't be drawn: \S") as caught:
            drawing.Drawings([Figure("x", "x", {"mark": 7})] * count).by_name()
        assert len(str(caught.value).splitlines()) == 1


def test_the_library_is_kept_between_reports(tmp_path, monkeypatch):
    import vl_convert

    first = drawing.library(tmp_path / "cache")
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: "another")
    assert drawing.library(tmp_path / "cache") == first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert drawing.library() == drawing.pack("another"), "kept nowhere, made again"
