"""Planted faults fail the benchmarks through pytest itself; the unfaulted run is green."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree

import pytest

import warm
from paths import ROOT

FAULTS = ROOT / "tests" / "support" / "faults"
MODEL_FAULTS = (
    "scale_doubled", "group_scale_doubled", "layers_swapped", "nan_weight", "two_bit", "nothing", "half",
    "scales_off",
)  # fmt: skip
CONTROL = "quanto_int8"
GATED = "perplexity or fvu or divergence or features"


def thresholds(*quantizations):
    """int8's own thresholds for every name: what a quantization that claims to change nothing is held to."""
    import tomlkit

    document = tomlkit.parse((ROOT / "thresholds.toml").read_text(encoding="utf-8"))
    for name in quantizations:
        document["tiny_gemma3"][name] = document["tiny_gemma3"]["int8"]
        document["defaults"][name] = document["defaults"]["int8"]
    return tomlkit.dumps(document)


def run(tmp_path, *more):
    """Run the benchmarks in a process of their own: (exit status, output, {test id: outcome})."""
    report = tmp_path / "junit.xml"
    arguments = [
        "--models", "tiny_gemma3", "-k", GATED,
        "--tokens", "16256",  # half: enough for every verdict here, in half the time
        "--qsae-dir", str(tmp_path / "qsae"), "--junit-xml", str(report), "-q",
        "-p", "no:cacheprovider", *more,
    ]  # fmt: skip
    done = warm.run(arguments, os.environ | {"PYTHONPATH": str(FAULTS)}, timeout=400)
    outcomes = {}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            failed = case.find("failure") is not None or case.find("error") is not None
            outcomes[case.get("name")] = "failed" if failed else "passed"
    return done.returncode, done.stdout + done.stderr, outcomes


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """One run with every fault of the model, and a quantization that is right among them."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "thresholds.toml").write_text(thresholds(*MODEL_FAULTS), encoding="utf-8")
    return folder, *run(
        folder, "--registry", str(FAULTS / "faults.toml"),
        "--quantizations", ",".join(["reference", *MODEL_FAULTS, CONTROL]),
        "--thresholds", str(folder / "thresholds.toml"),
    )  # fmt: skip


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_fault_of_the_model_is_red(faulty, fault):
    _, status, output, outcomes = faulty
    assert status == 1, output
    red = [name for name, outcome in outcomes.items() if fault in name and outcome == "failed"]
    # what only half a model has, or 1% too much of, shows in the weights and nowhere else
    assert len(red) >= (1 if fault in ("half", "scales_off") else 2), output
    assert f"tiny_gemma3-{fault}" in output


def test_the_control_beside_the_faults_is_green(faulty):
    folder, _, output, outcomes = faulty
    control = {n: o for n, o in outcomes.items() if f"-{CONTROL}" in n or "-reference" in n}
    assert len(control) > 4
    assert set(control.values()) == {"passed"}, output
    document = json.loads((folder / "qsae" / "latest" / "run.json").read_text())
    by_name = {cell["quantization"]: cell for cell in document["cells"]}
    # what does nothing would have passed every gate
    assert by_name["nothing"]["metrics"]["kl_divergence"]["value"] == 0
    assert {v["status"] for v in by_name["nothing"]["verdicts"]} == {"invalid"}
    assert by_name["nan_weight"]["metrics"]["perplexity"]["value"] is None
    assert {v["status"] for v in by_name["nan_weight"]["verdicts"]} == {"invalid"}


def test_a_tap_one_layer_off_is_red(tmp_path):
    status, output, outcomes = run(tmp_path, "-p", "tap_off_by_one", "--quantizations", "reference,int8")
    assert status == 3, output  # invalid: nothing is said about int8
    assert "outside the sane range" in output
    assert any("test_fvu" in name and outcome == "failed" for name, outcome in outcomes.items())


def test_bos_dropped_is_red(tmp_path):
    status, output, outcomes = run(tmp_path, "-p", "bos_dropped", "--quantizations", "reference,int8")
    assert status == 3, output
    assert "exactly one BOS" in output
    assert set(outcomes.values()) == {"failed"}


def test_unfaulted_run_is_green(tmp_path):
    timings = tmp_path / "benchmark.json"
    status, output, outcomes = run(
        tmp_path, "--quantizations", "reference,int8", "-k", f"{GATED} or evaluation",
        "--benchmark-json", str(timings),
    )  # fmt: skip
    assert status == 0, output
    assert set(outcomes.values()) == {"passed"}
    stored = json.loads(timings.read_text())
    assert "torch" in stored["machine_info"]["qsae_bench"]["versions"]
    by_name = {one["name"]: one for one in stored["benchmarks"]}
    int8 = by_name["test_evaluation[tiny_gemma3-int8]"]
    assert int8["group"] == "tiny_gemma3"
    assert int8["extra_info"]["kl_divergence"] > 0
    assert by_name["test_evaluation[tiny_gemma3-reference]"]["extra_info"]["kl_divergence"] == 0
