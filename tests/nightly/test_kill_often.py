"""A run that is killed at twenty random moments is the run that nothing happened to."""

from __future__ import annotations

import signal

import killing


def test_twenty_kills(tmp_path):
    killing.check_kills(tmp_path, 20)


STRADDLED = (
    'schema = 1\n[defaults.rtn_int4]\nkl_divergence = { max = 1.3e-3, source = "no look decides it" }\n'
)


def test_a_cell_that_is_killed_between_its_looks_is_the_cell_that_was_not(tmp_path):
    """Its gate stays undecided for all three looks; with splice columns and a noise floor to take over."""
    thresholds = tmp_path / "thresholds.toml"
    thresholds.write_text(STRADDLED)
    arguments = (
        "-k", "test_divergence and not top1", "--quantizations", "reference,rtn_int4", "--max-tokens", "8128", "--splice",
        "--noise-floor", "--thresholds", str(thresholds),
    )  # fmt: skip
    whole, qsae_dir = tmp_path / "whole", tmp_path / "killed"
    status, _ = killing.run(whole, *arguments)
    for resume, when in ([], "between looks"), (["--resume"], "mid-extension"):
        process = killing.start(qsae_dir, *arguments, *resume, "-p", "killed_mid_cell", QSAE_KILL_AT=when)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == -signal.SIGKILL, output
        assert killing.entries(qsae_dir) == ["tiny_gemma3-reference"]
    again, output = killing.run(qsae_dir, *arguments, "--resume")
    assert again == status, output
    assert "1 of 2 cells are finished" in output
    document = killing.latest(qsae_dir)
    reference, cell = document["cells"]
    assert (cell["tokens"], cell["looks"]) == (8128, 3)
    assert "kl_divergence" in reference["noise_floor"]["metrics"]
    assert [key for layer in cell["layers"].values() for key in layer["metrics"] if "splice" in key]
    assert killing.measured(document) == killing.measured(killing.latest(whole))
    assert killing.outcomes(qsae_dir) == killing.outcomes(whole)
