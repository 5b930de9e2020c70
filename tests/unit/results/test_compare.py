"""Stored cells are paired and tested: every way to name them, two runs, and what can't be compared."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from comparable_runs import (
    LAYERS,
    NOISE,
    SEQUENCES,
    as_json,
    compare,
    first_run,
    measured,
    refused,
    second_run,
    written,
)
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.rows import read_rows, write_rows


def test_the_verdict_is_of_a():
    forth, back = (
        as_json(*names)["comparisons"][0]["differences"] for names in (("nf4", "fp4"), ("fp4", "nf4"))
    )
    words = {"better": "worse", "worse": "better"}
    assert [words.get(d["verdict"], d["verdict"]) for d in forth] == [d["verdict"] for d in back]
    assert {d["verdict"] for d in forth} > {"better"}
    assert [d["difference"] for d in forth] == pytest.approx([-d["difference"] for d in back])


def test_one_against_all():
    found = as_json("nf4")
    assert [one["b"]["quantization"] for one in found["comparisons"]] == ["fp4", "int8", "rtn_int4"]
    assert {one["a"]["quantization"] for one in found["comparisons"]} == {"nf4"}
    assert found["correction"] == {"method": "Holm", "tests": 27}
    assert "corrected for all 27 tests" in " ".join(compare("nf4")[1].split())
    alone = as_json("nf4", "fp4")["comparisons"][0]["differences"]
    for one, other in zip(found["comparisons"][0]["differences"], alone, strict=True):
        assert one["p"] == other["p"]
        assert one["p_adjusted"] >= other["p_adjusted"]


def test_an_overview_tests_nothing():
    found = as_json()
    assert (found["comparisons"], found["correction"]["tests"]) == ([], 0)
    (overview,) = found["overview"]
    assert [quantization["name"] for quantization in overview["recipes"]] == list(NOISE)
    out = compare()[1]
    assert "Holm" not in out and max(map(len, out.splitlines())) <= 100
    assert out == compare(first_run())[1], "a run alone is the same question"


def test_a_chosen_metric_and_a_neither():
    found = as_json("nf4", "int8", "--metrics", "l0_ratio,kl_divergence,l0")["comparisons"][0][
        "differences"
    ]
    expected = [("kl_divergence", None), *((key, layer) for layer in LAYERS for key in ("l0_ratio", "l0"))]
    assert [(d["metric"], d["layer"]) for d in found] == expected
    words = {d["verdict"] for d in found if d["better"] == "neither"}
    assert words <= {"differs", "no difference shown"}
    assert "corrected for 1 test above" in " ".join(
        compare("nf4", "int8", "--metrics", "kl_divergence")[1].split()
    )


def test_two_runs():
    found = as_json(second_run(), first_run())
    assert [(one["a"]["run"], one["b"]["run"]) for one in found["comparisons"]] == [("second", "first")] * 2
    assert [one["a"]["quantization"] for one in found["comparisons"]] == ["nf4", "int8"]
    said = [{d["verdict"] for d in one["differences"]} for one in found["comparisons"]]
    assert "better" in said[0] and "worse" not in said[0]
    assert said[1] == {"no difference shown"}
    assert all(d["p"] == 1 for d in found["comparisons"][1]["differences"]), "the same rows"
    out = compare(second_run(), first_run())[1]
    assert "A = nf4, B = nf4; A of run second, B of run first" in out
    assert "A and B ran on different machines" in out
    assert re.search(r"^nf4 \(B\) +by nf4 ", out, re.MULTILINE)


def test_a_quantization_of_each_run():
    (one,) = as_json(f"{second_run()}:nf4", f"{first_run()}:fp4")["comparisons"]
    assert (one["a"]["run"], one["a"]["quantization"]) == ("second", "nf4")
    assert (one["b"]["run"], one["b"]["quantization"]) == ("first", "fp4")
    (same,) = as_json(f"{second_run()}:nf4", "fp4")["comparisons"]
    assert same == one, "a bare name is of --run"


def test_layers_that_only_one_has_are_said(tmp_path):
    one, other = measured("nf4"), measured("fp4")
    fewer = dataclasses.replace(other, layers={3: other.layers[3]}, features={})
    out = compare("nf4", "fp4", at=written(tmp_path / "fewer", [one, fewer]))[1]
    assert "note: layers of A: 1, 3, of B: 3, of both: 3" in out
    assert "note: feature_survival: not measured in both at layer 3" in out
    none = dataclasses.replace(other, layers={}, features={})
    folder = written(tmp_path / "none", [one, none])
    status, out, _ = compare("nf4", "fp4", at=folder)
    assert status == 0 and "of B: none, of both: none" in out
    status, _, error = compare("nf4", "fp4", "--metrics", "fvu_drift", at=folder)
    assert status == 2 and "fvu_drift: not measured in both; layers of A: 1, 3, of B: none" in error


def test_models_are_compared_one_by_one(tmp_path):
    cells = [measured(name, model) for model in ("tiny", "large") for name in ("nf4", "fp4")]
    folder = written(tmp_path / "models", cells)
    assert [one["model"] for one in as_json("nf4", "fp4", at=folder)["comparisons"]] == ["tiny", "large"]
    found = as_json("nf4", "fp4", "--model", "large", at=folder)
    assert [one["model"] for one in found["comparisons"]] == ["large"]
    assert [one["model"] for one in found["overview"]] == ["large"]


def test_what_could_not_be_compared_is_said(tmp_path):
    more = [
        {"model": "tiny", "quantization": "fp4", "status": "oom", "reason": "out of GPU memory"},
        {"model": "big", "quantization": "nf4", "status": "skipped", "reason": "big needs a GPU"},
    ]
    folder = written(tmp_path / "partly", [measured("nf4"), measured("int8")], more)
    found = as_json("nf4", at=folder)
    assert [one["b"]["quantization"] for one in found["comparisons"]] == ["int8"]
    assert found["left_out"] == ["tiny-fp4 was not measured (oom: out of GPU memory)"]
    assert "left out: tiny-fp4 was not measured (oom: out of GPU memory)" in compare("nf4", at=folder)[1]


def test_json_says_how_and_all():
    found = as_json("nf4", "rtn_int4")
    assert (found["schema_version"], found["swaps"], found["alpha"], found["level"]) == (
        1,
        9999,
        0.05,
        0.95,
    )
    (one,) = found["comparisons"]
    assert (one["sequences"], one["a"]["simulated"], one["b"]["simulated"]) == (SEQUENCES, False, True)
    assert one["corpus"]["fingerprint"] == "f" * 32
    for d in one["differences"]:
        assert d["difference"] == pytest.approx(d["a"] - d["b"], abs=1e-12)
        assert d["low"] is None or d["low"] <= d["difference"] <= d["high"]
        assert 0 < d["p"] <= d["p_adjusted"] <= 1
        assert (
            (d["method"] == "label swap")
            == (d["replicates"] == 9999)
            == (d["metric"] != "feature_survival")
        )
    bits, size = (
        next(cost for cost in one["costs"] if cost["metric"] == key)
        for key in ("bits_per_weight", "weight_bytes")
    )
    assert bits == {"metric": "bits_per_weight", "unit": "bits", "a": 4.25, "b": 4.5, "ratio": 4.25 / 4.5}
    assert (size["metric"], size["a"], size["b"], size["ratio"]) == ("weight_bytes", 2e6, None, None)
    quantizations = {quantization["name"]: quantization for quantization in found["overview"][0]["recipes"]}
    divergence = next(d for d in one["differences"] if d["metric"] == "kl_divergence")
    assert quantizations["nf4"]["metrics"]["kl_divergence"]["value"] == divergence["a"]
    assert quantizations["rtn_int4"]["costs"]["prefill_tokens_per_second"] is None
    assert not quantizations["reference"]["takes_part"]


# -- pairs that are refused --------------------------------------------------------------------------


def other_run(tmp_path, name, change, **document) -> Path:
    """A run whose nf4 is changed in its rows."""
    folder = written(tmp_path / name, [measured("nf4")], **document)
    path = folder / "rows" / "tiny-nf4.parquet"
    write_rows(path, change(read_rows(path)))
    return folder


def scaled(one: Measurement, column: str, factor: float, layer: int | None = None) -> Measurement:
    rows = one.rows if layer is None else one.layers[layer]
    new = dataclasses.replace(rows, scalars={**rows.scalars, column: rows.scalars[column] * factor})
    if layer is None:
        return dataclasses.replace(one, rows=new)
    return dataclasses.replace(one, layers={**one.layers, layer: new})


REFUSED = {
    "formulas": (
        {"metrics_version": METRICS_VERSION + 1}, lambda one: one,
        f"tiny-nf4 of other: metrics version {METRICS_VERSION + 1}, of a newer",
    ),
    "old formulas": (
        {"metrics_version": 1}, lambda one: one,
        f"tiny-nf4 of other: metrics version 1, today's is {METRICS_VERSION}",
    ),
    "corpus": (
        {"corpus": {"tiny": {
            "name": "other", "fingerprint": "e" * 32, "sequences": 9, "sequence_length": 7, "tokens": 9,
            "batch_size": 3, "dropped_documents": 0, "dropped_tokens": 0,
        }}},
        lambda one: one,
        "another corpus: stub with 24 sequences of 12 in batches of 4 (fingerprint ffffffff); other with 9 "
        "sequences of 7 in batches of 3 (fingerprint eeeeeeee); measure both",
    ),
    "rows of another corpus": (
        {"corpus": {}}, lambda one: dataclasses.replace(one, corpus_fingerprint="e" * 32), "another corpus: 24",
    ),
    "reference": ({}, lambda one: scaled(one, "nll_r", 1.01), "another reference: nll_r differs by up to 0.0099"),
    "layer": ({}, lambda one: scaled(one, "energy_all_r", 2.0, 3), "another reference: energy_all_r of layer 3"),
    "sae": ({}, lambda one: scaled(one, "error_all_r", 2.0, 3), "another SAE at layer 3"),
    "not finite": ({}, lambda one: scaled(one, "kl", np.nan), "tiny-nf4: non-finite values"),
    "random weights": ({"synthetic": True}, lambda one: one, "tiny-nf4 has random weights"),
    "invalid": (
        {"changes": {"nf4": {"reason": "its reference is not sane"}}}, lambda one: one,
        "tiny-nf4 is invalid: its reference is not sane",
    ),
    "skipped": (
        {"changes": {"nf4": {"status": "skipped", "reason": "needs a GPU"}}}, lambda one: one,
        "tiny-nf4 was not measured (skipped: needs a GPU)",
    ),
    "timed": ({"changes": {"nf4": {"status": "timed"}}}, lambda one: one, "tiny-nf4 was not measured (timed)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_pairs_that_can_not_be(tmp_path, name):
    document, change, part = REFUSED[name]
    folder = other_run(tmp_path, "other", change, **document)
    assert part in refused("nf4", f"{folder}:nf4")
