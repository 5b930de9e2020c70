"""``qsae-bench report --compare``: comparisons as reports."""

from __future__ import annotations

import json

from comparable_runs import measured, written
from running import typed


def test_a_report_compares_first_and_shows_the_run_it_was_given(tmp_path):
    folder = written(tmp_path / "runs" / "one", [measured(name) for name in ("reference", "nf4", "fp4")])
    page = tmp_path / "r.html"
    status, out, err = typed("report", folder, "--compare", "nf4", "fp4", "-o", page, "--history", "none")
    assert (status, err) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert text.index("A = nf4 against B = fp4") < text.index("Run one")
    assert 'data-figure="comparison-0-differences"' in text
    status, out, err = typed(
        "report", folder, "--compare", "nf4", "fp4", "--format", "json", "--history", "none"
    )
    comparison, run = json.loads(out)["parts"]
    found = comparison["sections"][0]["blocks"]
    rows = [row for block in found if block["kind"] == "table" for row in block["rows"] if "A is" in row]
    said = json.loads(typed("compare", "nf4", "fp4", "--run", folder, "--format", "json")[1])
    assert [row["A is"].partition(" at n")[0] for row in rows] == [
        d["verdict"] for d in said["comparisons"][0]["differences"]
    ]
    better = sum(row["A is"] == "better" for row in rows)
    assert f"better in {better}" in comparison["banner"]
    assert run["title"] == "Run one"


def test_two_nights_are_compared_without_the_rest(tmp_path):
    one = written(tmp_path / "runs" / "one", [measured("reference"), measured("nf4")])
    two = written(tmp_path / "runs" / "two", [measured("reference"), measured("nf4", noise=0.4)])
    status, out, err = typed("report", "--compare", one, two, "--format", "markdown", "--history", "none")
    assert (status, err) == (0, "")
    assert "# A = " in out and "# Run one" not in out
    status, out, err = typed("report", one, two, "--compare", "nf4", "fp4")
    assert status == 2
    assert "takes one RUN" in err
