"""The report of real runs in a real browser: what a reader sees, points at, and can't be tricked by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import warm
from documents import GONE, VERDICTS, run_document
from paths import ROOT
from qsae_bench.report.html_page import LETTERS
from qsae_bench.report.sections import word
from qsae_bench.report.writing import html_report, run_parts
from qsae_bench.results.document import read_run

AXE = Path(__file__).with_name("node_modules") / "axe-core" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 820, 1400)
SHOTS = Path(os.environ.get("QSAE_SCREENSHOTS", ROOT / "build" / "screenshots"))
"""kept as an artifact of CI"""

REQUIRED = os.environ.get("QSAE_BROWSER", "") == "required"
"""what is absent is an error then, not a skip: in CI"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED, reason="no Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A green and a red night of the embedded model, as ``pytest benchmarks`` leaves them."""
    home = tmp_path_factory.mktemp("qsae")
    shared = [
        "-p", "no:cacheprovider", "--models", "tiny_gemma3", "--tokens", "16256", "-q", "--quantizations",
        "reference,int8,nf4", "--qsae-dir", str(home), warm.REPORTED,
    ]  # fmt: skip
    found = {}
    for name, arguments, expected in (
        ("green", ["-k", "not overhead and not decode and not sae["], 0),
        ("red", ["-k", "perplexity or divergence", "--thresholds", "docs/strict.toml"], 1),
    ):
        done = warm.run([*shared, *arguments], dict(os.environ), timeout=500)
        assert done.returncode == expected, done.stdout + done.stderr
        assert "report.html" not in done.stdout + done.stderr, "no warning about it"
        found[name] = (home / "latest").resolve()
    return found


class Opened:
    """A page that notes what a quiet one has none of."""

    def __init__(self, browser, path, width=1400, **context):
        self.faults, self.requests = [], []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.faults.append("a dialog"), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def drawn(self):
        """Scroll through, so that every figure becomes interactive; their names."""
        names = self.page.eval_on_selector_all("[data-figure]", "all => all.map(one => one.dataset.figure)")
        for name in names:
            place = self.page.locator(f'[data-figure="{name}"]')
            place.scroll_into_view_if_needed()
            self.page.wait_for_selector(f'[data-figure="{name}"][data-drawn="interactive"]', timeout=20_000)
        return names


@pytest.fixture
def opened(browser):
    pages = []

    def make(path, **options):
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield make
    for one in pages:
        one.context.close()


FIGURES = ("loss", "fvu", "resolution", "definitions", "survival", "stability", "pareto", "cost", "history")


@pytest.mark.parametrize("name", ["green", "red"])
def test_it_is_quiet_and_asks_nobody(runs, opened, name):
    one = opened(runs[name] / "report.html")
    names = one.drawn()
    # the red night is the second on this machine, so it has a history
    expected = [f for f in FIGURES if name == "red" or f != "history"]
    assert [figure.rsplit("-", 1)[1] for figure in names] == expected
    for figure in names:
        box = one.page.locator(f'[data-figure="{figure}"] svg').first.bounding_box()
        assert box["width"] > 200 and box["height"] > 40, figure
        marks = one.page.locator(f'[data-figure="{figure}"] svg path').count()
        assert marks > 5, f"{figure} is an empty frame"
    assert one.faults == []
    assert one.requests == [(runs[name] / "report.html").as_uri()]


def matrix(page):
    """(model, quantization) -> the mark's text."""
    table = page.locator("table", has=page.locator("caption", has_text="Models by quantizations")).first
    heads = table.locator("thead th").all_inner_texts()
    found = {}
    for row in table.locator("tbody tr").all():
        cells = [row.locator("th").inner_text(), *row.locator("td").all_inner_texts()]
        found |= {(cells[0], head): text for head, text in zip(heads[1:], cells[1:], strict=True)}
    return found


@pytest.mark.parametrize("name", ["green", "red"])
def test_the_matrix_is_the_runs(runs, opened, name):
    document = read_run(runs[name])
    one = opened(runs[name] / "report.html")
    expected = {
        (c.model, c.quantization): f"{LETTERS.get(word(c), '')} {word(c)}".strip() for c in document.cells
    }
    assert matrix(one.page) == expected
    assert json.loads((runs[name] / "run.json").read_text(encoding="utf-8"))["run_id"] in one.page.title()


def test_pointing_at_a_mark_shows_its_value(runs, opened):
    one = opened(runs["green"] / "report.html")
    one.drawn()
    document = read_run(runs["green"])
    nf4 = next(cell for cell in document.cells if cell.quantization == "nf4")
    place = one.page.locator('[data-figure$="-loss"]')
    place.scroll_into_view_if_needed()
    for mark in place.locator(".mark-symbol.role-mark path").all():
        mark.hover(force=True)
        shown = one.page.locator("#vg-tooltip-element.visible").inner_text(timeout=5_000)
        if "nf4" in shown:
            break
    assert "quantization" in shown and "nf4" in shown
    values = [nf4.metrics[key].value for key in ("perplexity_increase_pct", "kl_divergence")]
    assert any(f"{value:.4g}" in shown for value in values), shown


def test_a_failing_run_says_so_above_the_fold(runs, opened):
    one = opened(runs["red"] / "report.html", width=1280)
    banner = one.page.locator(".banner")
    assert banner.inner_text().startswith("red: ")
    failing = one.page.locator("tbody tr", has=one.page.locator("span.mark.fail")).first
    for seen in (banner, failing):
        box = seen.bounding_box()
        assert box["y"] + box["height"] < 900
    assert "kl_divergence" in failing.inner_text()
    assert "≤" in failing.inner_text() or "max" in failing.inner_text()


def test_without_javascript_all_of_it_stands(runs, opened):
    one = opened(runs["green"] / "report.html", java_script_enabled=False)
    places = one.page.locator("[data-figure]")
    assert places.count() == len(FIGURES) - 1
    for place in places.all():
        box = place.locator("svg").bounding_box()
        assert box["width"] > 200 and box["height"] > 40
    assert one.page.locator("table").count() > 5
    assert one.requests == [(runs["green"] / "report.html").as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["green", "red"])
def test_axe_finds_nothing_serious(runs, opened, name, scheme):
    if not AXE.is_file() and not REQUIRED:
        pytest.skip("no axe-core: make browser (npm ci in tests/browser)")
    # its own script is added past the page's policy, which would refuse it
    one = opened(runs[name] / "report.html", color_scheme=scheme, bypass_csp=True)
    one.drawn()
    one.page.add_script_tag(path=str(AXE))
    found = one.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert found["passes"], "axe looked at nothing"
    serious = [
        f"{v['id']}: {v['help']}: {[node['html'][:120] for node in v['nodes'][:3]]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_its_width_and_is_kept_to_be_looked_at(runs, opened, width):
    for name in ("green", "red"):
        one = opened(runs[name] / "report.html", width=width)
        one.drawn()
        over = one.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert over <= 0, "tables and figures scroll in their own frames, the page doesn't"
        SHOTS.mkdir(parents=True, exist_ok=True)
        one.page.evaluate("window.scrollTo(0, 0)")
        one.page.screenshot(path=SHOTS / f"{name}-{width}.png", full_page=True)
        assert (SHOTS / f"{name}-{width}.png").stat().st_size > 10_000


def test_the_keyboard_reaches_what_scrolls_and_what_links(runs, opened):
    one = opened(runs["red"] / "report.html", width=390)
    reached = set()
    for _ in range(25):
        one.page.keyboard.press("Tab")
        reached.add(one.page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if one.page.evaluate("document.activeElement !== document.body"):
            style = one.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", "where the focus is can be seen"
    assert {"A", "scroll"} <= reached


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\n{{7*7}} ${alert(3)} ' `</script>"


def test_hostile_names_do_nothing(opened, tmp_path):
    models, quantizations = [f"m{HOSTILE}", "m"], [f"q{HOSTILE}", "datum.q]; alert(4)//", "nf4"]
    statuses = {(models[0], quantizations[0]): "fail", (models[1], quantizations[1]): "error"}
    document = run_document(
        models, quantizations, (3, 9), statuses, command=f"pytest {HOSTILE}", run_id=f"r{HOSTILE}"
    )
    cells = [
        c.model_copy(update={"warnings": [HOSTILE], "reason": HOSTILE if c.reason else ""})
        for c in document.cells
    ]
    document = document.model_copy(update={"cells": cells})
    path = tmp_path / "report.html"
    path.write_text(html_report(run_parts([(Path("x"), document)], "")), encoding="utf-8")
    one = opened(path)
    one.drawn()
    assert one.faults == []
    assert one.requests == [path.as_uri()]
    assert one.page.locator("img, iframe, object, main script").count() == 0
    text = one.page.locator("main").inner_text()
    assert "<script>alert(1)</script>" in text and "\u202e" not in text
    assert "{{7*7}}" in text and "49 " not in text.split("{{7*7}}")[0][-5:]


def test_every_kind_of_status_is_legible(opened, tmp_path):
    kinds = [*VERDICTS, *GONE]
    quantizations = [f"q{index}" for index in range(len(kinds))]
    document = run_document(
        ["m"], quantizations, (3,), {("m", q): k for q, k in zip(quantizations, kinds, strict=True)}
    )
    path = tmp_path / "report.html"
    path.write_text(html_report(run_parts([(Path("x"), document)], "")), encoding="utf-8")
    for scheme in ("light", "dark"):
        one = opened(path, color_scheme=scheme)
        shown = matrix(one.page)
        words = {"oom": "out of memory"}
        for quantization, kind in zip(quantizations, kinds, strict=True):
            letter = LETTERS[words.get(kind, kind)]
            assert shown["m", quantization] == f"{letter} {words.get(kind, kind)}"
        for kind in ("skipped", "out of memory", "error", "crashed"):
            assert (
                one.page.locator("tbody tr", has_text="this machine lacks").filter(has_text=kind).count()
                == 1
            )
        assert one.faults == []
    one.page.screenshot(path=tmp_path / "statuses.png", full_page=True)
