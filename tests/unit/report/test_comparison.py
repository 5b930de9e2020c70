"""A comparison as it is printed: tables for the terminal and in markdown."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from comparable_runs import CELLS, LAYERS, SEQUENCES, as_json, compare, measured, record, written
from qsae_bench.metrics.features import VECTORS, FeatureSums


def row(output: str, *begins: str) -> str:
    """The one line that begins with these words."""
    pattern = r"\s+".join(map(re.escape, begins)) + r"(\s|$)"
    (line,) = [line for line in output.splitlines() if re.match(pattern, line)]
    return line


def test_a_against_b():
    status, out, err = compare("nf4", "fp4")
    assert (status, err) == (0, "")
    assert out.startswith("tiny: A = nf4, B = fp4; both of run first\n")
    assert f"of stub in {SEQUENCES} sequences, documents unknown" in out
    assert row(out, "kl_divergence").endswith("better")
    for layer in LAYERS:
        assert row(out, "perturbation_nsr", str(layer)).endswith("better")
    assert f"A, at n = {SEQUENCES}" in out
    assert "corrected for all 9 tests above (Holm), called at p ≤ 0.05" in " ".join(out.split())
    assert row(out, "bits_per_weight").split() == ["bits_per_weight", "4.25", "4.25", "1"]
    assert row(out, "weight_bytes").split() == ["weight_bytes", "2.0", "MB", "2.0", "MB", "1"]
    assert row(out, "load_seconds").split() == ["load_seconds", "2.00", "1.00", "2"]
    assert "decode_tokens_per_second" not in out, "neither was timed"
    assert max(map(len, out.splitlines())) <= 100


def test_dominated_quantizations_are_marked():
    out = compare("nf4", "fp4")[1]
    heads, _, *rows = out[out.index("Pareto ") :].splitlines()
    assert re.split(r"  +", heads.strip()) == [
        "Pareto", "KLD, bits/w", "survival, bits/w", "KLD, tokens/s", "survival, tokens/s",
    ]  # fmt: skip
    standing = {line.split("  ")[0]: re.split(r"  +", line.strip())[1:] for line in rows[:4]}
    assert standing["nf4"][0] == "front"
    assert standing["fp4"][0] == "by nf4"
    assert standing["fp4"][2] == "front", "the fastest"
    assert standing["rtn_int4"][0] == "by nf4"
    assert standing["rtn_int4"][2:] == ["–", "–"], "simulated: no speed of its own"
    assert "reference" not in standing
    assert "note: rtn_int4: simulated: rounded values are kept as floats" in out
    planes = as_json("nf4", "fp4")["overview"][0]["planes"]
    for plane, column in zip(planes, range(4), strict=True):
        for name, by in plane["dominated_by"].items():
            assert standing[name][column] == (f"by {by[0]}" if by else "front")


def test_a_simulated_side_has_no_costs_of_its_own():
    out = compare("rtn_int4", "nf4")[1]
    assert row(out, "bits_per_weight").split() == ["bits_per_weight", "4.50", "4.25", "1.06"]
    assert row(out, "weight_bytes").split() == ["weight_bytes", "–", "2.0", "MB", "–"]
    assert row(out, "prefill_tokens_per_second").split() == ["prefill_tokens_per_second", "–", "700", "–"]
    assert "note: A (rtn_int4): simulated" in out


def test_a_side_beside_other_workers_has_no_speed(tmp_path):
    shared = written(tmp_path / "shared", CELLS, changes={"int8": {"shared_device": True}})
    out = compare("int8", "nf4", at=shared)[1]
    assert row(out, "weight_bytes").split()[1] != "–"
    assert row(out, "prefill_tokens_per_second").split() == ["prefill_tokens_per_second", "–", "700", "–"]
    assert "note: A (int8): no load and speeds: its device was shared with other workers" in out


HOSTILE = "a|b\n<i>*x*[y](z)`\x1b[31m"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_whole_whatever_a_name_holds(tmp_path):
    hostile = dataclasses.replace(measured("nf4"), quantization=HOSTILE)
    folder = written(tmp_path / "hostile", [measured("fp4")], [record(hostile)])
    status, out, _ = compare("--format", "markdown", at=folder)
    assert status == 0
    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for head, rule, *rows in tables:
        width = len(cells_of(head))
        assert set(cells_of(rule)) == {"---"}
        assert [len(cells_of(line)) for line in rows] == [width] * 2
        (name,) = {cells_of(line)[0] for line in rows} - {"fp4"}
        assert name == r"a\|b &lt;i>\*x\*\[y\](z)\` \[31m"
    assert "\x1b" not in out and "<i>" not in out
    terminal = compare(at=folder)[1]
    assert "\x1b" not in terminal and "a|b <i>*x*[y](z)` [31m" in terminal


def test_markdown_has_bounds_and_both_p():
    out = compare("nf4", "fp4", "--format", "markdown")[1]
    head = next(line for line in out.splitlines() if line.startswith("| metric | layer"))
    assert cells_of(head) == ["metric", "layer", "A", "B", "A − B", "95% interval", "p", "p (Holm)", "A is"]
    for d in as_json("nf4", "fp4")["comparisons"][0]["differences"]:
        layer = [] if d["layer"] is None else [str(d["layer"])]
        line = next(
            li for li in out.splitlines() if li.startswith("| " + " | ".join([d["metric"], *layer]) + " |")
        )
        verdict = d["verdict"] + (f" at n = {SEQUENCES}" if d["verdict"] == "no difference shown" else "")
        bounds = "–" if d["low"] is None else f"{d['low']:+.3g} to {d['high']:+.3g}"
        assert cells_of(line)[1 + len(layer) :] == [
            f"{d['a']:.4g}", f"{d['b']:.4g}", f"{d['difference']:+.3g}", bounds, f"{d['p']:.2g}",
            f"{d['p_adjusted']:.2g}", verdict,
        ]  # fmt: skip


def test_what_is_not_finite_is_null_and_a_dash(tmp_path):
    """No feature is ever active often enough: survival is no number, and there is nothing to test."""
    silent = FeatureSums({k: np.zeros((8, 4)) for k in VECTORS}, np.full(8, 9.0), np.ones(4))
    cells = [
        dataclasses.replace(measured(name), features=dict.fromkeys(LAYERS, silent))
        for name in ("nf4", "fp4")
    ]
    folder = written(tmp_path / "silent", cells)
    found = [
        d
        for d in as_json("nf4", "fp4", at=folder)["comparisons"][0]["differences"]
        if "survival" in d["metric"]
    ]
    assert {(d["a"], d["difference"], d["low"], d["p"], d["verdict"]) for d in found} == {
        (None, None, None, None, "not tested")
    }
    line = row(compare("nf4", "fp4", at=folder)[1], "feature_survival", "1")
    assert line.split()[2:] == ["–", "–", "–", "–", "not", "tested"]
