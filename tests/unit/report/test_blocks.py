"""A report as JSON has the tables and words of the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from documents import run_document
from qsae_bench.report.blocks import json_lines
from qsae_bench.report.html_page import figures_of
from qsae_bench.report.run_report import banner
from qsae_bench.report.writing import run_parts


def parts_of(document):
    return run_parts([(Path("runs/x"), document)], "")


def test_json_has_what_the_page_has():
    document = run_document(["m"], ["int8", "nf4"], (3,), {("m", "nf4"): "fail"})
    found = json.loads("\n".join(json_lines(parts_of(document))), parse_constant=pytest.fail)
    (part,) = found["parts"]
    assert (part["tone"], part["banner"]) == ("fail", banner(document))
    assert part["blocks"][0]["rows"] == [{"model": "m", "reference": "–", "int8": "pass", "nf4": "fail"}]
    figures = [b for s in part["sections"] for b in s["blocks"] if b["kind"] == "figure"]
    assert [one["name"] for one in figures] == [figure.name for figure in figures_of(parts_of(document))]
    (loss,) = [one for one in figures if one["name"].endswith("loss")]
    kld = loss["vega_lite"]["hconcat"][1]["data"]["values"]
    assert {row["q"]: row["value"] for row in kld} == {
        cell.quantization: cell.metrics["kl_divergence"].value for cell in document.cells[1:]
    }


def test_json_stays_json_whatever_a_reason_holds():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "error"})
    cells = [
        c.model_copy(update={"reason": "a\u2028b\x85c\u202ed\ne" if c.reason else ""})
        for c in document.cells
    ]
    text = "\n".join(json_lines(parts_of(document.model_copy(update={"cells": cells}))))
    assert "a\u2028b\x85c\u202ed\ne" in str(json.loads(text)) or "\\u2028" in repr(json.loads(text))
    assert text.isascii()
