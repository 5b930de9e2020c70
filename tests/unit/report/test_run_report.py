"""What a report has to say of a run: the matrix, the banner, what failed, and what an old run lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from documents import GONE, VERDICTS, run_document, verdict
from qsae_bench.report.html_page import figures_of
from qsae_bench.report.run_report import banner, run_part, tone
from qsae_bench.results.document import RunDocument

EVERY = [*VERDICTS, *GONE]


def part_of(document):
    return run_part(document, Path("runs/x"), {})


def table_of(document, caption):
    (table,) = [b for b in part_of(document).blocks if getattr(b, "caption", "").startswith(caption)]
    return table


def headings_of(document):
    return [b.text for section in part_of(document).sections for b in section.blocks if hasattr(b, "level")]


def test_the_matrix_has_every_cell_with_its_word():
    statuses = {("m", f"q{index}"): status for index, status in enumerate(EVERY)}
    document = run_document(["m"], [f"q{index}" for index in range(len(EVERY))], (3,), statuses)
    (row,) = table_of(document, "Models by").rows
    words = {"oom": "out of memory"}
    assert {q: str(mark) for q, mark in row.items()} == {
        "model": "m", "reference": "–", **{q: words.get(s, s) for (_, q), s in statuses.items()}
    }  # fmt: skip


@pytest.mark.parametrize("name", ["about", "model", "run"])
def test_a_quantization_named_like_a_column_has_its_own(name):
    rows = table_of(run_document([name, f"{name}-2"], [name, "nf4"], (3,)), "Models by").rows
    assert [next(iter(row.values())) for row in rows] == [name, f"{name}-2"]
    assert all(str(row[name]) == "pass" for row in rows)


@pytest.mark.parametrize("status", EVERY)
def test_the_banner_names_each_status(status):
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): status})
    red = status in ("fail", "inconclusive", "invalid", "unset", "oom", "error", "crashed")
    assert tone(document) == ("" if status == "skipped" else "fail" if red else "pass")
    line = banner(document)
    assert line.startswith({"fail": "red: ", "pass": "green: ", "": "nothing was judged: "}[tone(document)])
    assert {"pass": "4 gates passed", "oom": "1 cell out of memory"}.get(status, status) in line


def test_a_test_that_failed_beside_the_gates_makes_it_red():
    document = run_document(failed_tests=[{"test": "b.py::test_overhead[m]", "said": "overhead 1.9 > 1.7"}])
    assert banner(document) == "red: 8 gates passed; 1 other test failed"
    assert any("overhead 1.9 > 1.7" in str(block) for block in part_of(document).blocks)


def test_a_run_that_judged_only_references_is_not_green():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "skipped"})
    gate = verdict("cross_entropy", None)
    reference = document.cells[0].model_dump() | {"verdicts": [gate]}
    changed = RunDocument.model_validate(
        document.model_dump() | {"cells": [reference, document.cells[1].model_dump()]}
    )
    assert banner(changed) == "red: only references were measured, and no gate; 1 cell skipped"
    alone = changed.model_copy(update={"cells": changed.cells[:1]})
    assert banner(alone) == "green: 1 gate passed", "it was all that was asked for"


def test_what_failed_is_in_the_order_of_gravity():
    statuses = {("m", "a"): "inconclusive", ("m", "b"): "unset", ("m", "c"): "fail", ("m", "d"): "invalid"}
    document = run_document(["m"], ["a", "b", "c", "d"], (3,), statuses)
    rows = table_of(document, "Gates that failed").rows
    assert [str(row["verdict"]) for row in rows] == ["invalid", "fail", "unset", "inconclusive"]


def test_random_weights_have_no_quality():
    headings = headings_of(run_document(synthetic=True))
    assert "Does it still predict text as the original does?" not in headings
    assert "What does it cost?" in headings


def test_an_old_run_without_what_came_later_has_a_report():
    document = run_document().model_dump()
    for name in ("neuronpedia", "failed_tests"):
        del document[name]
    for cell in document["cells"]:
        for layer in cell["layers"].values():
            del layer["survival_curve"]
    part = part_of(RunDocument.model_validate(document))
    names = [figure.name for figure in figures_of([part])]
    assert not any(name.endswith("survival") for name in names)
    assert any(name.endswith("loss") for name in names)


def test_nothing_measured_is_a_report_too():
    document = run_document(["m"], ["nf4"], (3,), {("m", "nf4"): "skipped"})
    gone = document.cells[1].model_copy(update={"quantization": "reference"})
    none = document.model_copy(update={"cells": [gone, document.cells[1]]})
    assert banner(none) == "red: nothing was measured; 2 cells skipped"
    assert [section.title for section in part_of(none).sections] == ["Environment, corpus, thresholds"]


@pytest.mark.parametrize(
    ("changes", "documents", "dropped"),
    [
        ({}, "unknown", "100 tokens, 3 documents, 0 repeated sequences"),
        (
            {"documents": 1024, "sequences_per_document": 2, "dropped_repeats": 7},
            "1,024, at most 2 sequences of each", "100 tokens, 3 documents, 7 repeated sequences",
        ),
        ({"documents": 47}, "47", "100 tokens, 3 documents, 0 repeated sequences"),
        (
            {"documents": 128, "sequences_per_document": 2, "is_one_document": True}, "128 pieces of one",
            "100 tokens, 3 documents, 0 repeated sequences",
        ),
    ],
)  # fmt: skip
def test_what_is_known_of_a_corpus_and_its_documents(changes, documents, dropped):
    plain = run_document().model_dump()
    corpora = {model: corpus | changes for model, corpus in plain["corpus"].items()}
    part = part_of(RunDocument.model_validate(plain | {"corpus": corpora}))
    blocks = [block for section in part.sections for block in section.blocks]
    (table,) = [block for block in blocks if getattr(block, "caption", "") == "Corpus of each model"]
    (row,) = table.rows
    assert (row["documents"], row["dropped"]) == (documents, dropped)
