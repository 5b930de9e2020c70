"""The exit status of real runs of each kind."""

from __future__ import annotations

import pytest

from paths import ROOT
from running import benchmarks

# -- real runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "gema3_12b"], "ERROR: unknown model 'gema3_12b'"),
        (["--tokens", "0"], "ERROR: --tokens 0"),
        (["no_such_folder"], "ERROR: file or directory not found: no_such_folder"),
        (
            ["--isolate", "--isolate-timeout", "0"],
            "ERROR: --isolate-timeout 0: must be more than 0 seconds",
        ),
        (["--isolate", "--isolate-timeout=-1"], "ERROR: --isolate-timeout -1: must be more than 0 seconds"),
        (["--isolate", "--isolate-timeout", "nan"], "ERROR: --isolate-timeout nan: must be more"),
        (["--isolate-timeout", "60"], "ERROR: --isolate-timeout: needs --isolate or --workers"),
        (["-k", "nf4 and ("], "ERROR: Wrong expression passed to '-k'"),
    ],
)
def test_usage_is_2_with_one_line(arguments, said):
    status, output = benchmarks(*arguments)
    assert status == 2, output
    lines = [line for line in output.splitlines() if "ERROR" in line]
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert "leaves nothing to measure" not in output


def test_what_pytest_can_not_parse_keeps_its_own_status():
    """It is refused before any plugin is asked: docs/ci.md says so."""
    status, output = benchmarks("--no-such-option")
    assert status == 4
    assert "unrecognized arguments: --no-such-option" in output


def test_nothing_selected_is_3():
    assert benchmarks("-k", "gemma3_13b")[0] == 3


def test_collecting_only_is_0():
    assert benchmarks("--collect-only", "-q", "-k", "gemma3_12b")[0] == 0


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
    assert "red, but no regression: 1 gate failed in 1 test: 1 invalid; 1 other test failed" in output
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
