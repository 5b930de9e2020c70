"""The run document: strict JSON that reads back the same, and anything else is refused in one line."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import one_line, threshold
from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Provenance
from qsae_bench.gate.verdict import decide
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import (
    RunDocument,
    new_run_id,
    other_text,
    read_run,
    text_of,
    value_record,
    verdict_record,
)
from qsae_bench.stats.bootstrap import Estimate


def document(**changes) -> RunDocument:
    verdict = decide("perplexity_increase_pct", Estimate(1.25, 0.75, 1.75), threshold(1.0), 1000)
    cell = {
        "model": "tiny",
        "quantization": "nf4",
        "status": "measured",
        "metrics": {"perplexity": value_record(Estimate(9.5, 9.0, math.nan)).model_dump()},
        "layers": {"3": {"metrics": {"fvu": {"value": 0.1 + 0.2, "low": 1e-300, "high": 1e300}}}},
        "verdicts": [verdict_record(verdict).model_dump()],
    }
    fields = {
        "schema_version": 1,
        "run_id": "20260101T000000Z-abcd",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "command": "pytest benchmarks -k 'größer ≤ \u2028'",
        "environment": {"torch": "2.11", "gpus": [], "driver": None},
        "corpus": {
            "tiny": {
                "name": "tiny", "fingerprint": "ab", "sequences": 6, "sequence_length": 12, "tokens": 60,
                "batch_size": 2, "dropped_documents": 0, "dropped_tokens": 3,
            }
        },
        "cells": [cell, {"model": "m", "quantization": "q", "status": "skipped", "reason": "needs a GPU"}],
    }  # fmt: skip
    return RunDocument.model_validate(fields | changes)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


# -- the document ---------------------------------------------------------------------------------


def test_what_is_written_reads_back_the_same(tmp_path):
    (tmp_path / "run.json").write_text(text_of(document()), encoding="utf-8")
    assert read_run(tmp_path) == document()


def test_the_file_is_strict_json_with_null_for_nan():
    plain = json.loads(text_of(document()), parse_constant=refuse_constant)
    metric = plain["cells"][0]["metrics"]["perplexity"]
    assert metric == {"value": 9.5, "low": 9.0, "high": None}
    assert plain["cells"][0]["layers"]["3"]["metrics"]["fvu"]["value"] == 0.1 + 0.2
    assert plain["command"] == document().command


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_null(bad):
    record = value_record(Estimate(bad, bad, 1.0))
    assert (record.value, record.low, record.high) == (None, None, 1.0)


def test_a_verdict_keeps_its_threshold_and_its_source():
    verdict = decide("fvu", Estimate(2.0, 1.5, 2.5), threshold(1.0, "min", "fvu"), 123, layer=3)
    record = verdict_record(verdict)
    assert (record.metric, record.layer, record.status) == ("fvu", 3, "pass")
    assert (record.side, record.bound, record.tokens) == ("min", 1.0, 123)
    assert record.source == "measured 1.2 with margin 0.3"


def test_an_unset_verdict_has_no_threshold():
    record = verdict_record(decide("fvu", Estimate(2.0), None, 123, layer=3))
    assert (record.status, record.side, record.bound, record.source) == ("unset", None, None, None)


def test_run_ids_differ_and_sort_by_time():
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) > 45
    assert [name[:16] for name in ids] == sorted(name[:16] for name in ids)


# -- reading what is not a run --------------------------------------------------------------------


def run_json(**changes) -> str:
    return json.dumps(document().model_dump() | changes)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"{", ["not JSON"]),
        (b"", ["not JSON"]),
        (b"\xff", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[1" + b"0" * 5000 + b"]", ["not JSON"]),
        (b"[]", ["not a run document"]),
        (b"{}", ["not a run document", "schema_version"]),
        (run_json(schema_version=2).encode(), ["not a run document", "schema_version"]),
        (run_json(extra=1).encode(), ["not a run document", "extra"]),
        (run_json(**{"two\nlines": 1}).encode(), ["not a run document", "two\\nlines"]),
        (run_json(cells=3).encode(), ["not a run document", "cells"]),
        (run_json(started=None).encode(), ["not a run document", "started"]),
        (run_json(cells=[{"model": "m"}]).encode(), ["not a run document", "cells.0.quantization"]),
        (
            run_json(cells=[{"model": "m", "quantization": "q", "status": "fine"}]).encode(),
            ["not a run document", "cells.0.status"],
        ),
        (
            run_json(
                cells=[
                    {
                        "model": "m", "quantization": "q", "status": "measured",
                        "metrics": {"fvu": {"value": math.nan}},
                    }
                ]
            ).encode(),
            ["not JSON: NaN is not a JSON value"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_run_document_takes_one_line(tmp_path, content, parts):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(QsaeError) as caught:
        read_run(tmp_path)
    message = one_line(caught.value)
    assert message.startswith(str(tmp_path / "run.json"))
    assert [part for part in parts if part not in message] == [], message


def test_no_run_there_takes_one_line(tmp_path):
    with pytest.raises(QsaeError, match="can't be read: No such file") as caught:
        read_run(tmp_path / "none")
    one_line(caught.value)


texts = st.text(max_size=8)  # lone surrogates too: JSON can spell them
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
FIELDS = st.sampled_from(sorted(RunDocument.model_fields))


@given(trees | st.dictionaries(FIELDS | texts, trees, max_size=3), st.booleans())
@example({"run_id": "\ud800"}, True)
@example({"\ud800": 1}, True)
@example({"corpus": {"\n": 1}}, True)
def test_any_json_reads_or_is_refused_in_one_line(anything, among_good_fields):
    if among_good_fields and isinstance(anything, dict):
        anything = document().model_dump() | anything
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text(json.dumps(anything), encoding="utf-8")
        try:
            found = read_run(Path(folder))
        except QsaeError as error:
            assert one_line(error).startswith(folder)
        else:
            assert set(anything) <= set(RunDocument.model_fields), "nothing unknown is ignored"
            assert found.schema_version == 1


@given(st.binary(max_size=30))
def test_any_bytes_are_refused_in_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_bytes(content)
        with pytest.raises(QsaeError) as caught:
            read_run(Path(folder))
        one_line(caught.value)


CORPUS = CorpusRecord(
    name="textfile", fingerprint="ab", sequences=8, sequence_length=128, tokens=1016, batch_size=4,
    dropped_documents=0, dropped_tokens=0, source="a.txt",
)  # fmt: skip
HERE = Provenance(tokens=1016, corpus="textfile:a.txt", fingerprint="ab", sequence_length=128)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"corpus": ""}, ""),  # an entry from before the field
        ({"fingerprint": "cd"}, "another text named textfile:a.txt"),
        ({"fingerprint": "cd", "tokens": 2032}, ""),  # of another number of sequences
        ({"corpus": "tiny"}, "tiny in sequences of 128"),
        ({"sequence_length": 512}, "textfile:a.txt in sequences of 512"),
    ],
)
def test_a_bound_of_other_text(changes, said):
    assert other_text(replace(HERE, **changes), CORPUS) == said
    assert other_text(replace(HERE, **changes), None) == ""
