"""``qsae-bench history``: wrong arguments end with one line."""

from __future__ import annotations

import pytest

from qsae_bench.app.cli import main as cli

SECRET = "s3cr3t!"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "fvu"], "--model and --metric are needed"),
        (["export"], "did you mean 'import'?"),
        (["import"], "name a run's folder"),
        (["import", "nowhere"], "nowhere: no such folder"),
        (["--model", "tiny", "--metric", "fvu"], "no history yet"),
        (["--model", "tiny", "--metric", "fvu", "--last", "-1"], "a number of runs is needed"),
        (["--history", "none", "import", "x"], "switched off"),
        (["--history", f"mysql://me:{SECRET}@h/d", "import", "x"], "not the URL of a history"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QSAE_HISTORY", raising=False)
    assert cli.main(["history", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert SECRET not in err
