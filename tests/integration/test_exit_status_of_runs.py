"""The exit status of real runs; tests/unit/app/test_plugin.py has the cases that need no process."""

from __future__ import annotations

import pytest

from paths import ROOT
from running import benchmarks


def test_usage_is_2_with_one_line():
    """Every other usage error is in tests/unit/app/test_plugin.py, without a process."""
    status, output = benchmarks("--models", "gema3_12b")
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if "ERROR" in line]
    assert line.startswith("ERROR: unknown model 'gema3_12b'")
    assert "leaves nothing to measure" not in output


@pytest.mark.parametrize(
    ("threshold", "status"), [("max = 1e9", 0), ("max = -1e9", 1)], ids=["a gate passes", "a gate fails"]
)
def test_a_gate_decides(tmp_path, threshold, status):
    (tmp_path / "t.toml").write_text(
        f'schema = 1\n[tiny_gemma3.rtn_int4]\nperplexity_increase_pct = {{ {threshold}, source = "test" }}\n'
    )
    found, output = benchmarks(
        "--models", "tiny_gemma3", "--quantizations", "rtn_int4", "-k", "perplexity", "--tokens", "2032",
        "--thresholds", str(tmp_path / "t.toml"), "--qsae-dir", str(tmp_path),
    )  # fmt: skip
    assert found == status, output
    assert f"(exit status {status})" in output


def test_invalid_alone_is_no_regression(tmp_path):
    """A weight that is NaN says nothing about quantization; beside a failing gate it is still a regression."""
    faults = ROOT / "tests" / "support" / "faults"
    (tmp_path / "t.toml").write_text(
        'schema = 1\n[tiny_gemma3.rtn_int4]\nperplexity_increase_pct = { max = -1e9, source = "test" }\n'
        '[tiny_gemma3.nan_weight]\nperplexity_increase_pct = { max = 1e9, source = "test" }\n'
    )
    common = [
        "--models", "tiny_gemma3", "--registry", str(faults / "faults.toml"), "--tokens", "2032",
        "--thresholds", str(tmp_path / "t.toml"), "--qsae-dir", str(tmp_path), "-k", "perplexity or evaluation",
    ]  # fmt: skip
    status, output = benchmarks(*common, "--quantizations", "nan_weight", PYTHONPATH=str(faults))
    assert status == 3, output
    assert "perplexity_increase_pct INVALID" in output
    assert "red, but no regression: 1 gate failed: 1 invalid; 1 other test failed" in output
    status, output = benchmarks(*common, "--quantizations", "nan_weight,rtn_int4", PYTHONPATH=str(faults))
    assert status == 1, output


def test_a_run_that_can_not_be_kept_is_3(tmp_path):
    """Every gate passes, and nobody will ever be able to look at it: not green."""
    (tmp_path / "runs").write_text("a file where the folder should be")
    status, output = benchmarks(
        "--models", "tiny_gemma3", "--quantizations", "reference", "-k", "perplexity", "--tokens", "2032",
        "--qsae-dir", str(tmp_path),
    )  # fmt: skip
    assert status == 3, output
    assert "ERROR: " in output
