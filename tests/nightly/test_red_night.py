"""Play docs/red_night.md: each run ends and prints as the page says."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from paths import ROOT

PAGE = (ROOT / "docs" / "red_night.md").read_text(encoding="utf-8")


def test_the_nights_go_as_the_page_says(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [ROOT / "docs" / "red_night" / "play.sh", tmp_path], env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # the script checks the statuses; what the page quotes must be printed
    for line in (
        "tiny_gemma3-acme_int8: kl_divergence FAIL",
        "moved      the quantized model: kl_divergence",
        "2.mlp.down_proj most: 1.48 times the",
        "red: 6 gates failed: 6 fail (exit status 1)",
        "in short: A's acme_int8 against B's acme_int8: better in 0, worse in 7, of 9 tests",
    ):
        assert line in done.stdout, done.stdout
        assert line in PAGE
    (red,) = (line for line in done.stdout.splitlines() if line.startswith("<?xml"))
    assert 'failures="6"' in red
    green = ElementTree.parse(tmp_path / "junit.xml")  # of the last night
    assert {case.get("name") for case in green.iter("testcase")} and not list(green.iter("failure"))
