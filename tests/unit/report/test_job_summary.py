"""The job summary: what it says, that nothing in it is markup, where it goes, how long it is."""

from __future__ import annotations

import re

import pytest

from documents import run_document
from markup import HOSTILE, rendered
from qsae_bench.gate import exit_status as exitstatus
from qsae_bench.report.job_summary import (
    MOST_BYTES,
    MOST_ROWS,
    PAGE,
    STEP_SUMMARY,
    chance_line,
    fitting,
    outcome_line,
    page,
    write_page,
)
from qsae_bench.results.failures import Failure, Failures


def verdict(status, metric="fvu_drift", layer=3, **changes):
    return {
        "metric": metric, "layer": layer, "status": status, "side": "max", "bound": 0.01,
        "source": "measured 0.002", "provisional": False, "tokens": 8128, "reason": "",
        "judged": {"value": 0.02, "low": 0.018, "high": 0.022}, "looks": 2,
    } | changes  # fmt: skip


def cell(quantization, *verdicts, model="m", status="measured", **changes):
    layer = {"metrics": {"fvu_drift": {"value": 0.02, "low": 0.019, "high": 0.021}}}
    return {
        "model": model, "quantization": quantization, "status": status, "metrics": {}, "layers": {"3": layer},
        "verdicts": list(verdicts), "tokens": 8128, "planned_tokens": 32512, "looks": 2,
    } | changes  # fmt: skip


def document(*cells, **changes):
    environment = {
        "gpus": [{"name": "NVIDIA H200"}] * 2,
        "driver": "580.1",
        "versions": {"torch": "2.13.0"},
    }
    about = {"command": "pytest benchmarks -k nf4", "environment": environment}
    return run_document(cells=list(cells), corpus={}, **about | changes)


def failures(*found):
    return Failures([Failure(test, frozenset({"other"}), gate, said) for test, gate, said in found])


def text(run, status=1, found=None, lost=(), home=".qsae/runs/x"):
    return "\n".join(page(run, status, found or failures(), lost, home))


# -- what it says -----------------------------------------------------------------------------------


def test_a_red_night_on_a_page():
    run = document(
        cell("reference", planned_tokens=0, looks=1),
        cell("nf4", verdict("fail", attribution="the quantized model moved"), verdict("pass", "l0")),
        cell("int8", verdict("pass", judged={"value": 1e-5, "low": 0.0, "high": 2e-5})),
        cell("nf4", model="big", status="skipped", reason="big needs a CUDA GPU with 27 GiB", layers={}, looks=0,
             tokens=0, planned_tokens=0),
        cell("int8", model="big", status="oom", reason="out of memory", layers={}, looks=0, tokens=0, planned_tokens=0),
    )  # fmt: skip
    found = failures(
        ("b.py::test_fvu[m-nf4-layer3]", "fail", "x"), ("b.py::test_overhead[m]", "", "overhead 1.9")
    )
    out = text(run, 1, found)
    lines = out.splitlines()
    assert lines[0] == "## qsae-bench: red: 1 gate failed: 1 fail; 1 other test failed (exit status 1)"
    assert "on 2 × NVIDIA H200." in out
    assert "| model | reference | nf4 | int8 |" in lines
    assert "| m | – | fail | pass |" in lines
    assert "| big |  | skipped | out of memory |" in lines
    row = next(line for line in lines if line.startswith("| m-nf4 layer 3 |"))
    assert row == (
        "| m-nf4 layer 3 | fvu_drift | fail | 0.0200 fraction (0.0180 to 0.0220) | max 0.01 | measured 0.002 | 8,128 |"
    )
    assert "- m-nf4 layer 3 fvu_drift: moved: the quantized model moved" in lines
    assert "- b.py::test_overhead\\[m\\]: overhead 1.9" in lines
    assert "| big | nf4 | skipped | big needs a CUDA GPU with 27 GiB |" in lines
    assert "16,256 of at most 65,024 predicted, 75% saved by deciding early." in lines
    assert "torch 2.13.0" in out and "driver 580.1" in out
    assert "pytest benchmarks -k nf4" in lines
    assert "qsae-bench show .qsae/runs/x -k m-nf4" in lines


def test_a_green_night_is_short():
    out = text(document(cell("nf4", verdict("pass"), tokens=32512, looks=1)), 0)
    assert out.startswith("## qsae-bench: green: 1 gate passed (exit status 0)")
    for heading in ("What failed", "Other failing", "Not measured", "Notes"):
        assert heading not in out


@pytest.mark.parametrize(
    ("status", "found", "lost", "said"),
    [
        (exitstatus.NOTHING_MEASURED, [], [], "red, but no regression: nothing was measured (exit status 3)"),
        (exitstatus.NOTHING_MEASURED, [], ["disk full"], "red, but no regression: not stored (exit status 3)"),
        (
            exitstatus.NOTHING_MEASURED, [("t", "invalid", ""), ("u", "invalid", "")], [],
            "red, but no regression: 2 gates failed: 2 invalid (exit status 3)",
        ),
        (
            exitstatus.REGRESSION, [("t", "fail", ""), ("u", "unset", ""), ("v", "fail", "")], [],
            "red: 3 gates failed: 2 fail, 1 unset (exit status 1)",
        ),
        (2, [], [], "stopped (exit status 2)"),
    ],
)  # fmt: skip
def test_the_banner(status, found, lost, said):
    assert outcome_line(None, status, failures(*found), lost) == said


def test_suspicious_gates_are_said_though_they_pass():
    run = document(
        cell("nf4", verdict("suspicious", reason="better than its own reference"), verdict("pass", "l0"))
    )
    assert outcome_line(run, 0, failures()) == "green: 2 gates passed; 1 of them suspicious (exit status 0)"
    assert "better than its own reference" in text(run, 0)


def test_the_chance_of_a_false_alarm_is_that_of_all_gates_with_an_interval():
    exact = verdict("pass", "weight_nsr", judged={"value": 0.1, "low": None, "high": None})
    run = document(cell("nf4", *(verdict("pass", key) for key in ("l0", "fvu", "mse")), exact))
    assert "each of 3 gates" in chance_line(run) and "at most 7.5% likely" in chance_line(run)
    many = document(cell("nf4", *(verdict("pass", layer=layer) for layer in range(60))))
    assert "at most 100% likely" in chance_line(many)
    assert chance_line(document(cell("nf4", verdict("pass")))) == chance_line(None) == ""


def test_nothing_measured_and_nothing_stored_still_make_a_page():
    assert text(None, 3) == "## qsae-bench: red, but no regression: nothing was measured (exit status 3)\n"
    assert "**Not stored:** runs: No space left" in text(None, 3, lost=["runs: No space left"])


def test_a_value_that_is_not_finite_and_a_cell_that_is_broken_without_a_verdict():
    broken = cell("nf4", verdict("invalid", judged=None, bound=None, side=None, source=None), layers={})
    broken["layers"] = {"3": {"metrics": {"fvu_drift": {"value": None}}}}
    out = text(document(broken, cell("int8", reason="weights overflowed")), 3)
    assert "| m-nf4 layer 3 | fvu_drift | invalid | not finite | none | – | 8,128 |" in out
    assert "- m-int8: weights overflowed" in out
    assert "| m | invalid | invalid |" in out


def test_it_stays_a_page():
    """Three hundred failing gates: the first ones, and how many more there are."""
    gates = [verdict("fail", f"metric_{i}", reason=f"why {i}") for i in range(300)]
    out = text(document(cell("nf4", *gates)), 1, failures(*[(f"t{i}", [], "x") for i in range(300)]))
    assert f"And {300 - MOST_ROWS} more." in out
    assert f"- and {300 - MOST_ROWS} more" in out
    assert len(out.splitlines()) < 4 * MOST_ROWS


# -- nothing in it is markup ------------------------------------------------------------------------


def test_a_crashed_cell_is_not_measured():
    out = text(document(cell("nf4"), cell("int8", status="crashed", reason="killed by SIGSEGV")))
    assert "### Not measured" in out
    assert "| m | int8 | crashed | killed by SIGSEGV |" in out


def test_a_hostile_run_is_one_table_a_heading_and_text():
    """Every string of the document, wherever it lands."""
    hostile = cell(
        HOSTILE, verdict("fail", source=HOSTILE, reason=HOSTILE, attribution="b" + HOSTILE), model=HOSTILE, warnings=[HOSTILE], looks=3
    )  # fmt: skip
    gone = cell("int8", model=HOSTILE, status="error", reason=HOSTILE)
    run = document(
        hostile, gone, run_id=HOSTILE, command=HOSTILE, started=HOSTILE,
        environment={"cpu": HOSTILE, "gpus": [{"name": HOSTILE}], "versions": {HOSTILE: HOSTILE}},
    )  # fmt: skip
    out = text(run, 1, failures((HOSTILE, [], HOSTILE)), [HOSTILE], home=HOSTILE)
    plain = document(
        cell("nf4", verdict("fail", reason="r", attribution="b"), warnings=["w"], looks=3),
        cell("int8", status="error", reason="e"),
    )
    same = text(plain, 1, failures(("t", [], "s")), ["l"], home="h")
    shape = re.compile(r"<(h\d|table|tr|t[hd]|ul|li|p|pre|code|strong|em|a|img|script|s|del)\b")
    assert shape.findall(rendered(out)) == shape.findall(rendered(same))
    assert not any(not (char.isprintable() or char == "\n") for char in out)
    assert "@team" not in out.replace("```", "").split("### Again")[0]


# -- where it goes ----------------------------------------------------------------------------------


def test_it_goes_beside_the_run_and_after_what_the_step_wrote(tmp_path):
    step = tmp_path / "step.md"
    step.write_text("before\n")
    assert write_page("page é\n", tmp_path, {STEP_SUMMARY: str(step)}) == []
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == "page é\n"
    assert step.read_text(encoding="utf-8") == "before\npage é\n"
    assert write_page("page\n", None, {STEP_SUMMARY: ""}) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step.md", PAGE]


@pytest.mark.parametrize("where", ["missing/step.md", ".", "a\0b"])
def test_a_page_that_can_not_be_written_is_one_line(tmp_path, where):
    warnings = write_page("page\n", tmp_path / "gone", {STEP_SUMMARY: f"{tmp_path}/{where}"})
    assert len(warnings) == 2
    assert all(len(line.splitlines()) == 1 and "can't be written: " in line for line in warnings)
    assert STEP_SUMMARY in warnings[1]


def test_githubs_limit_is_respected_between_lines(tmp_path):
    step = tmp_path / "step.md"
    step.write_bytes(b"x" * 1000)
    long = "".join(f"| zeile {i} é |\n" for i in range(100_000))
    assert len(long.encode()) > MOST_BYTES
    write_page(long, tmp_path, {STEP_SUMMARY: str(step)})
    written = step.read_bytes()
    assert MOST_BYTES - 100 < len(written) <= MOST_BYTES
    lines = written[1000:].decode("utf-8").splitlines()
    assert set(lines[:-2]) < set(long.splitlines())
    assert lines[-2] == ""
    assert "Cut here" in lines[-1] and PAGE in lines[-1]
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == long
    write_page(long, None, {STEP_SUMMARY: str(step)})
    assert len(step.read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("room", [-5, 0, 1, 50, 92, 93, 94, 200, 999, 1000])
def test_fitting_fits(room):
    content = b"0123456789\n" * 90 + b"0123456789"
    assert len(content) == 1000
    assert len(fitting(content, room)) <= max(room, 0)


def test_corpora_are_named_once_with_their_documents():
    about = {
        "name": "pile10k", "fingerprint": "f", "sequences": 256, "sequence_length": 512, "tokens": 130816,
        "batch_size": 4, "dropped_documents": 0, "dropped_tokens": 0, "documents": 140,
    }  # fmt: skip
    run = run_document(cells=[cell("nf4")], corpus={"a": about, "b": about})
    assert text(run).count("130,816 tokens of pile10k in 256 sequences of 140 documents: a, b.") == 1
