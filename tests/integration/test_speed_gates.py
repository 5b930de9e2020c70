"""Gates on speeds, on the command line: what a run that only times judges, and what it leaves out."""

from __future__ import annotations

import json
import os

import pytest

import warm


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """``timed(keyword, bounds)`` -> (exit status, output, the run document)."""

    def run(keyword, bounds, *options):
        folder = tmp_path_factory.mktemp("speed")
        file = folder / "thresholds.toml"
        file.write_text(f"schema = 1\n{bounds}")
        arguments = [
            "-q", "-p", "no:cacheprovider", "-k", keyword, "--models", "tiny_gemma3", "--tokens", "2032", "--qsae-dir", str(folder / "q"), "--thresholds", str(file), *options,
        ]  # fmt: skip
        done = warm.run(arguments, os.environ | {"COLUMNS": "300"}, timeout=400)
        said = done.stdout + done.stderr
        found = sorted((folder / "q" / "runs").glob("*/run.json"))
        assert found, said
        return done.returncode, said, json.loads(found[-1].read_text())

    return run


def test_a_run_of_speeds_alone_is_judged_and_measures_nothing_else(timed):
    bounds = """
    [tiny_gemma3.nf4]
    prefill_speed_ratio = { min = 1e6, source = "no quantization is a million times as fast" }
    decode_speed_ratio = { min = 1e-6, source = "nor so slow" }
    """
    status, said, document = timed("(prefill or decode) and (reference or nf4)", bounds)
    assert status == 1, said
    assert "tiny_gemma3-nf4: prefill_speed_ratio FAIL" in said
    reference, nf4 = document["cells"]
    assert (reference["status"], nf4["status"]) == ("timed", "timed")
    assert "perplexity" not in nf4["metrics"]
    assert {v["metric"]: v["status"] for v in nf4["verdicts"]} == {
        "prefill_speed_ratio": "fail", "decode_speed_ratio": "pass",
    }  # fmt: skip
    for work in ("prefill", "decode"):
        ours, other = nf4["timings"][work], reference["timings"][work]
        assert ours["rounds"] == len(ours["seconds"]) == 5
        value = nf4["metrics"][f"{work}_speed_ratio"]
        assert value["value"] == pytest.approx(other["median_seconds"] / ours["median_seconds"])
        assert value["low"] <= value["value"] <= value["high"]


def test_a_cell_alone_has_no_ratio_and_says_what_to_run(timed):
    bounds = '[tiny_gemma3.nf4]\nprefill_speed_ratio = { min = 0.1, source = "s" }\n'
    status, said, document = timed("prefill and nf4", bounds, "-rs")
    assert status == 0, said
    assert "prefill_speed_ratio not measured: the speed of its reference was not taken in this run" in said
    (nf4,) = document["cells"]
    assert nf4["verdicts"] == [] and nf4["metrics"]["prefill_tokens_per_second"]["value"] > 0
    assert "prefill_speed_ratio" not in nf4["metrics"]
