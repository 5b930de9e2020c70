"""A comparison of the embedded model's cells, and comparisons as reports."""

from __future__ import annotations

import json

import pytest

from builders import write_session
from comparable_runs import as_json, measured, written
from running import typed


@pytest.mark.large
def test_nf4_against_fp4_on_the_embedded_model(tmp_path):
    """The residual stream and the SAEs tell the two apart at every layer; nothing speaks for FP4."""
    from qsae_bench.gate.thresholds import Thresholds
    from qsae_bench.registry.entries import Selection, load_registry
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    registry = load_registry()
    session = LocalSession(SessionOptions(registry, Thresholds({}), tmp_path, "test"))
    for cell in registry.select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4", "fp4"))
    ):
        session.require(cell)
        session.measure(cell)
    _, folder = write_session(session)
    session.close()
    (one,) = as_json("nf4", "fp4", at=folder)["comparisons"]
    assert one["sequences"] == 256
    said = {(d["metric"], d["layer"]): d["verdict"] for d in one["differences"]}
    for layer in (1, 3, 4):
        assert said["fvu_drift", layer] == said["perturbation_nsr", layer] == "better"
    assert "worse" not in said.values()
    kl = next(d for d in one["differences"] if d["metric"] == "kl_divergence")
    # heavy tails: a few positions carry most of the mean, so 256 sequences show its sign and no more
    assert kl["difference"] < 0


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
