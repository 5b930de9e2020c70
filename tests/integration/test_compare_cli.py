"""``qsae-bench compare`` as a user types it: runs on disk, every way to name cells, every refusal, every format."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders import Synthetic, measurement, synthetic, write_session
from qsae_bench.app.cli.main import main
from qsae_bench.metrics.features import VECTORS, FeatureSums
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.document import RunDocument, value_record
from qsae_bench.results.rows import read_rows, write_rows
from qsae_bench.results.run_files import write_run
from qsae_bench.stats.bootstrap import estimate
from running import typed

LAYERS = (1, 3)
SEQUENCES = 24
NOISE = {"reference": 0.0, "nf4": 0.2, "fp4": 0.3, "int8": 0.02, "rtn_int4": 0.25}
COSTS = {
    "reference": {"bits_per_weight": 16.0, "weight_bytes": 8e6, "prefill_tokens_per_second": 900.0},
    "nf4": {"bits_per_weight": 4.25, "weight_bytes": 2e6, "prefill_tokens_per_second": 700.0, "load_seconds": 2.0},
    "fp4": {"bits_per_weight": 4.25, "weight_bytes": 2e6, "prefill_tokens_per_second": 800.0, "load_seconds": 1.0},
    "int8": {"bits_per_weight": 8.5, "weight_bytes": 4e6, "prefill_tokens_per_second": 300.0},
    "rtn_int4": {"bits_per_weight": 4.5, "weight_bytes": 8e6, "prefill_tokens_per_second": 900.0},
}  # fmt: skip


def quantized(data: Synthetic, noise: float, seed: int) -> Synthetic:
    rng = np.random.default_rng(seed)

    def near(x):
        return x + noise * rng.normal(size=x.shape)

    q = dataclasses.replace(data.r, x=near(data.r.x), x_hat=near(data.r.x_hat))
    return dataclasses.replace(
        data, q=q, nll_q=near(data.nll_r) + noise, kl=noise * rng.gamma(2.0, 0.1, size=data.kl.shape)
    )


def feature_sums(noise: float, length: int = 100, d_sae: int = 40) -> FeatureSums:
    rng = np.random.default_rng(4)
    r = np.maximum(rng.normal(size=(8, length, d_sae)), 0)
    strength = noise * np.linspace(0, 4, d_sae)
    q = np.where(r > 0, np.maximum(r + strength * np.random.default_rng(5).normal(size=r.shape), 0), 0)
    both = (r > 0) & (q > 0)
    columns = (r, q, r**2, q**2, r * q, both, (r > 0) & ~both, (q > 0) & ~both)
    vectors = {
        name: column.sum(axis=1).astype(float) for name, column in zip(VECTORS, columns, strict=True)
    }
    return FeatureSums(vectors, np.full(8, float(length)), np.ones(d_sae))


def measured(name: str, model: str = "tiny", noise: float | None = None, seed: int = 1) -> Measurement:
    noise = NOISE.get(name, 0.2) if noise is None else noise
    data = quantized(synthetic(seed, n=SEQUENCES), noise, sum(map(ord, name)))
    features = dict.fromkeys(LAYERS, feature_sums(noise))
    return measurement(data, LAYERS, model=model, quantization=name, features=features)


def record(one: Measurement, **changes) -> dict:
    found = estimate(one, replicates=20)
    costs = COSTS.get(one.quantization, {})
    return {
        "model": one.model, "quantization": one.quantization, "status": "measured",
        "metrics": {k: value_record(e).model_dump() for k, e in found.cell.items()}
        | {key: {"value": value} for key, value in costs.items()},
        "layers": {
            str(layer): {"metrics": {k: value_record(e).model_dump() for k, e in estimates.items()}}
            for layer, estimates in found.layers.items()
        },
    } | changes  # fmt: skip


def written(
    folder: Path, measurements: list[Measurement], more: list[dict] = (), changes=None, **document
) -> Path:
    """A run's folder; ``changes``: of the records, by quantization."""
    models = list(dict.fromkeys(one.model for one in measurements))
    corpus = {
        "name": "stub", "fingerprint": measurements[0].corpus_fingerprint, "sequences": SEQUENCES,
        "sequence_length": 12, "tokens": 240, "batch_size": 4, "dropped_documents": 0, "dropped_tokens": 0,
    }  # fmt: skip
    made = {
        "schema_version": 1, "run_id": folder.name, "started": "", "finished": "", "command": "pytest",
        "environment": {"cpu": "one"}, "corpus": dict.fromkeys(models, corpus),
        "cells": [record(one, **(changes or {}).get(one.quantization, {})) for one in measurements] + list(more),
    } | document  # fmt: skip
    rows = {f"{one.model}-{one.quantization}": one for one in measurements}
    path = write_run(folder.parent / "made", RunDocument.model_validate(made), rows)
    shutil.copytree(path, folder)
    return folder


CELLS = [measured(name) for name in NOISE]
SIMULATED = {"rtn_int4": {"quantized": {"share": 1.0, "simulated": True}}}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("runs") / "first", CELLS, changes=SIMULATED)


@pytest.fixture
def run(capsys, run_folder):
    """``run(*arguments)`` -> (status, standard output, standard error), on the run at hand."""

    def call(*arguments, at=run_folder):
        status = main(["compare", *map(str, arguments), "--run", str(at)])
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def as_json(run):
    def call(*arguments, **options):
        status, out, err = run(*arguments, "--format", "json", **options)
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return call


def row(output: str, *begins: str) -> str:
    """The one line that begins with these words."""
    pattern = r"\s+".join(map(re.escape, begins)) + r"(\s|$)"
    (line,) = [line for line in output.splitlines() if re.match(pattern, line)]
    return line


# -- what is compared -----------------------------------------------------------------------------


def test_a_against_b(run):
    status, out, err = run("nf4", "fp4")
    assert (status, err) == (0, "")
    assert out.startswith("tiny: A = nf4, B = fp4; both of run first\n")
    assert f"in {SEQUENCES} sequences of stub" in out
    assert row(out, "kl_divergence").endswith("better")
    for layer in LAYERS:
        assert row(out, "perturbation_nsr", str(layer)).endswith("better")
    assert f"A, at n = {SEQUENCES}" in out
    assert "corrected for all 9 tests above (Holm), called at p ≤ 0.05" in " ".join(out.split())
    assert row(out, "bits_per_weight").split() == ["bits_per_weight", "4.25", "4.25", "1"]
    assert row(out, "weight_bytes").split() == ["weight_bytes", "2.0", "MB", "2.0", "MB", "1"]
    assert row(out, "load_seconds").split() == ["load_seconds", "2.00", "1.00", "2"]
    assert "decode_tokens_per_second" not in out, "neither was timed"
    assert max(map(len, out.splitlines())) <= 100


def test_the_verdict_is_of_a(as_json):
    forth, back = (
        as_json(*names)["comparisons"][0]["differences"] for names in (("nf4", "fp4"), ("fp4", "nf4"))
    )
    words = {"better": "worse", "worse": "better"}
    assert [words.get(d["verdict"], d["verdict"]) for d in forth] == [d["verdict"] for d in back]
    assert {d["verdict"] for d in forth} > {"better"}
    assert [d["difference"] for d in forth] == pytest.approx([-d["difference"] for d in back])


def test_one_against_all(as_json, run):
    found = as_json("nf4")
    assert [one["b"]["quantization"] for one in found["comparisons"]] == ["fp4", "int8", "rtn_int4"]
    assert {one["a"]["quantization"] for one in found["comparisons"]} == {"nf4"}
    assert found["correction"] == {"method": "Holm", "tests": 27}
    assert "corrected for all 27 tests" in " ".join(run("nf4")[1].split())
    alone = as_json("nf4", "fp4")["comparisons"][0]["differences"]
    for one, other in zip(found["comparisons"][0]["differences"], alone, strict=True):
        assert one["p"] == other["p"]
        assert one["p_adjusted"] >= other["p_adjusted"]


def test_an_overview_tests_nothing(as_json, run, run_folder):
    found = as_json()
    assert (found["comparisons"], found["correction"]["tests"]) == ([], 0)
    (overview,) = found["overview"]
    assert [recipe["name"] for recipe in overview["recipes"]] == list(NOISE)
    out = run()[1]
    assert "Holm" not in out and max(map(len, out.splitlines())) <= 100
    assert out == run(run_folder)[1], "a run alone is the same question"


def test_a_chosen_metric_and_a_neither(run, as_json):
    found = as_json("nf4", "int8", "--metrics", "l0_ratio,kl_divergence,l0")["comparisons"][0][
        "differences"
    ]
    expected = [("kl_divergence", None), *((key, layer) for layer in LAYERS for key in ("l0_ratio", "l0"))]
    assert [(d["metric"], d["layer"]) for d in found] == expected
    words = {d["verdict"] for d in found if d["better"] == "neither"}
    assert words <= {"differs", "no difference shown"}
    assert "corrected for 1 test above" in " ".join(
        run("nf4", "int8", "--metrics", "kl_divergence")[1].split()
    )


# -- quality against cost -------------------------------------------------------------------------


def test_dominated_recipes_are_marked(run, as_json):
    out = run("nf4", "fp4")[1]
    heads, _, *rows = out[out.index("Pareto ") :].splitlines()
    assert re.split(r"  +", heads.strip()) == [
        "Pareto", "KLD, bits/w", "survival, bits/w", "KLD, tokens/s", "survival, tokens/s",
    ]  # fmt: skip
    standing = {line.split("  ")[0]: re.split(r"  +", line.strip())[1:] for line in rows[:4]}
    assert standing["nf4"][0] == "front"
    assert standing["fp4"][0] == "by nf4"
    assert standing["fp4"][2] == "front", "the fastest"
    assert standing["rtn_int4"][0] == "by nf4"
    assert standing["rtn_int4"][2:] == ["–", "–"], "simulated: no speed of its own"
    assert "reference" not in standing
    assert "note: rtn_int4: simulated: rounded values are kept as floats" in out
    planes = as_json("nf4", "fp4")["overview"][0]["planes"]
    for plane, column in zip(planes, range(4), strict=True):
        for name, by in plane["dominated_by"].items():
            assert standing[name][column] == (f"by {by[0]}" if by else "front")


def test_a_simulated_side_has_no_costs_of_its_own(run):
    out = run("rtn_int4", "nf4")[1]
    assert row(out, "bits_per_weight").split() == ["bits_per_weight", "4.50", "4.25", "1.06"]
    assert row(out, "weight_bytes").split() == ["weight_bytes", "–", "2.0", "MB", "–"]
    assert row(out, "prefill_tokens_per_second").split() == ["prefill_tokens_per_second", "–", "700", "–"]
    assert "note: A (rtn_int4): simulated" in out


def test_a_side_beside_other_workers_has_no_speed(run, tmp_path):
    shared = written(tmp_path / "shared", CELLS, changes={"int8": {"shared_device": True}})
    out = run("int8", "nf4", at=shared)[1]
    assert row(out, "weight_bytes").split()[1] != "–"
    assert row(out, "prefill_tokens_per_second").split() == ["prefill_tokens_per_second", "–", "700", "–"]
    assert "note: A (int8): no load and speeds: its device was shared with other workers" in out


# -- two runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another day: nf4 got better, fp4 was not measured."""
    cells = [measured("reference"), measured("nf4", noise=0.05), measured("int8")]
    return written(tmp_path_factory.mktemp("again") / "second", cells, environment={"cpu": "two"})


def test_two_runs(run, as_json, run_folder, second):
    found = as_json(second, run_folder)
    assert [(one["a"]["run"], one["b"]["run"]) for one in found["comparisons"]] == [("second", "first")] * 2
    assert [one["a"]["quantization"] for one in found["comparisons"]] == ["nf4", "int8"]
    said = [{d["verdict"] for d in one["differences"]} for one in found["comparisons"]]
    assert "better" in said[0] and "worse" not in said[0]
    assert said[1] == {"no difference shown"}
    assert all(d["p"] == 1 for d in found["comparisons"][1]["differences"]), "the same rows"
    out = run(second, run_folder)[1]
    assert "A = nf4, B = nf4; A of run second, B of run first" in out
    assert "A and B ran on different machines" in out
    assert row(out, "nf4 (B)", "by").split()[:4] == ["nf4", "(B)", "by", "nf4"]


def test_a_recipe_of_each_run(as_json, run_folder, second):
    (one,) = as_json(f"{second}:nf4", f"{run_folder}:fp4")["comparisons"]
    assert (one["a"]["run"], one["a"]["quantization"]) == ("second", "nf4")
    assert (one["b"]["run"], one["b"]["quantization"]) == ("first", "fp4")
    (same,) = as_json(f"{second}:nf4", "fp4")["comparisons"]
    assert same == one, "a bare name is of --run"


def test_layers_that_only_one_has_are_said(run, tmp_path):
    one, other = measured("nf4"), measured("fp4")
    fewer = dataclasses.replace(other, layers={3: other.layers[3]}, features={})
    out = run("nf4", "fp4", at=written(tmp_path / "fewer", [one, fewer]))[1]
    assert "note: layers of A: 1, 3, of B: 3, of both: 3" in out
    assert "note: feature_survival: not measured in both at layer 3" in out
    none = dataclasses.replace(other, layers={}, features={})
    folder = written(tmp_path / "none", [one, none])
    status, out, _ = run("nf4", "fp4", at=folder)
    assert status == 0 and "of B: none, of both: none" in out
    status, _, error = run("nf4", "fp4", "--metrics", "fvu_drift", at=folder)
    assert status == 2 and "fvu_drift: not measured in both; layers of A: 1, 3, of B: none" in error


def test_models_are_compared_one_by_one(as_json, tmp_path):
    cells = [measured(name, model) for model in ("tiny", "large") for name in ("nf4", "fp4")]
    folder = written(tmp_path / "models", cells)
    assert [one["model"] for one in as_json("nf4", "fp4", at=folder)["comparisons"]] == ["tiny", "large"]
    found = as_json("nf4", "fp4", "--model", "large", at=folder)
    assert [one["model"] for one in found["comparisons"]] == ["large"]
    assert [one["model"] for one in found["overview"]] == ["large"]


def test_what_could_not_be_compared_is_said(run, as_json, tmp_path):
    more = [
        {"model": "tiny", "quantization": "fp4", "status": "oom", "reason": "out of GPU memory"},
        {"model": "big", "quantization": "nf4", "status": "skipped", "reason": "big needs a GPU"},
    ]
    folder = written(tmp_path / "partly", [measured("nf4"), measured("int8")], more)
    found = as_json("nf4", at=folder)
    assert [one["b"]["quantization"] for one in found["comparisons"]] == ["int8"]
    assert found["left_out"] == ["tiny-fp4 was not measured (oom: out of GPU memory)"]
    assert "left out: tiny-fp4 was not measured (oom: out of GPU memory)" in run("nf4", at=folder)[1]


# -- what is refused ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nf5"], "unknown quantization 'nf5' in first (did you mean 'nf4'?)"),
        (["nf4", "reference"], "'reference' is what every metric already compares with"),
        (["nf4", "nf4"], "nf4 is compared with itself"),
        (["RUN", "RUN"], "first is compared with itself"),
        (["RUN", "nf4"], "a run can't be compared with a quantization"),
        (["nf4", "fp4", "int8"], "compare takes A and B, not 3 names"),
        (["RUN/rows", "nf4"], "rows: no run.json there"),
        (["RUNS:nf4", "nf4"], "can't be read"),
        (["nf4", "--model", "tyny"], "unknown model 'tyny' in first (did you mean 'tiny'?)"),
        (["--model", "tyny"], "unknown model 'tyny'"),
        (["nf4", "--metrics", "fvu_drft"], "unknown metric 'fvu_drft' (did you mean 'fvu_drift'?)"),
        (["nf4", "--metrics", "load_seconds"], "load_seconds is shown beside, not tested"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(run, run_folder, arguments, part):
    status, out, error = run(*(text.replace("RUN", str(run_folder)) for text in arguments))
    assert (status, out) == (2, "")
    assert error.startswith("qsae-bench: ") and len(error.splitlines()) == 1
    assert part in error


REFUSED = {
    "formulas": ({"metrics_version": 2}, lambda one: one, "tiny-nf4 of other: metrics version 2, of a newer"),
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
    "layer": ({}, lambda one: scaled(one, "energy_r", 2.0, 3), "another reference: energy_r of layer 3"),
    "sae": ({}, lambda one: scaled(one, "error_r", 2.0, 3), "another SAE at layer 3"),
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
def test_pairs_that_can_not_be(run, tmp_path, run_folder, name):
    document, change, part = REFUSED[name]
    folder = other_run(tmp_path, "other", change, **document)
    status, out, error = run("nf4", f"{folder}:nf4")
    assert (status, out) == (2, "")
    assert error.startswith("qsae-bench: ") and len(error.splitlines()) == 1
    assert part in error


def test_more_that_is_refused(run, tmp_path):
    alone = written(tmp_path / "alone", [measured("reference"), measured("nf4")])
    assert "nf4 is the only quantization of alone" in run("nf4", at=alone)[2]
    large = written(tmp_path / "large", [measured("nf4", "large")])
    assert "no cell to pair; A has tiny-reference, tiny-nf4; B has large-nf4" in run(alone, large)[2]
    bare = written(tmp_path / "bare", [measured("reference")])
    assert "unknown quantization 'nf4' in bare: it holds no quantized cell" in run("nf4", at=bare)[2]
    lost = written(tmp_path / "lost", [measured("nf4"), measured("fp4")])
    (lost / "rows" / "tiny-fp4.parquet").unlink()
    assert "no rows of tiny-fp4 are stored: measure it again" in run("nf4", "fp4", at=lost)[2]
    random = written(tmp_path / "random", [measured("nf4")], synthetic=True)
    assert "random has random weights (--synthetic): there is no quality to compare" in run(at=random)[2]
    skipped = written(tmp_path / "skipped", [measured("nf4")], changes={"nf4": {"status": "skipped"}})
    assert "skipped holds no measured cell" in run(at=skipped)[2]


# -- formats --------------------------------------------------------------------------------------

HOSTILE = "a|b\n<i>*x*[y](z)`\x1b[31m"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_whole_whatever_a_name_holds(run, tmp_path):
    hostile = dataclasses.replace(measured("nf4"), quantization=HOSTILE)
    folder = written(tmp_path / "hostile", [measured("fp4")], [record(hostile)])
    status, out, _ = run("--format", "markdown", at=folder)
    assert status == 0
    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for head, rule, *rows in tables:
        width = len(cells_of(head))
        assert set(cells_of(rule)) == {"---"}
        assert [len(cells_of(line)) for line in rows] == [width] * 2
        (name,) = {cells_of(line)[0] for line in rows} - {"fp4"}
        assert name == r"a\|b &lt;i>\*x\*\[y\](z)\` \[31m"
    assert "\x1b" not in out and "<i>" not in out
    terminal = run(at=folder)[1]
    assert "\x1b" not in terminal and "a|b <i>*x*[y](z)` [31m" in terminal


def test_markdown_has_bounds_and_both_p(run, as_json):
    out = run("nf4", "fp4", "--format", "markdown")[1]
    head = next(line for line in out.splitlines() if line.startswith("| metric | layer"))
    assert cells_of(head) == ["metric", "layer", "A", "B", "A − B", "95% interval", "p", "p (Holm)", "A is"]
    for d in as_json("nf4", "fp4")["comparisons"][0]["differences"]:
        layer = [] if d["layer"] is None else [str(d["layer"])]
        line = next(
            li for li in out.splitlines() if li.startswith("| " + " | ".join([d["metric"], *layer]) + " |")
        )
        verdict = d["verdict"] + (f" at n = {SEQUENCES}" if d["verdict"] == "no difference shown" else "")
        bounds = "–" if d["low"] is None else f"{d['low']:+.3g} to {d['high']:+.3g}"
        assert cells_of(line)[1 + len(layer) :] == [
            f"{d['a']:.4g}", f"{d['b']:.4g}", f"{d['difference']:+.3g}", bounds, f"{d['p']:.2g}",
            f"{d['p_adjusted']:.2g}", verdict,
        ]  # fmt: skip


def test_json_says_how_and_all(as_json):
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
    bits, size = one["costs"][:2]
    assert bits == {"metric": "bits_per_weight", "unit": "bits", "a": 4.25, "b": 4.5, "ratio": 4.25 / 4.5}
    assert (size["metric"], size["a"], size["b"], size["ratio"]) == ("weight_bytes", 2e6, None, None)
    recipes = {recipe["name"]: recipe for recipe in found["overview"][0]["recipes"]}
    assert recipes["nf4"]["metrics"]["kl_divergence"]["value"] == one["differences"][0]["a"]
    assert recipes["rtn_int4"]["costs"]["prefill_tokens_per_second"] is None
    assert not recipes["reference"]["takes_part"]


def test_what_is_not_finite_is_null_and_a_dash(run, as_json, tmp_path):
    """No feature is ever active often enough: survival is no number, and there is nothing to test."""
    silent = FeatureSums({k: np.zeros((8, 4)) for k in VECTORS}, np.full(8, 9.0), np.ones(4))
    cells = [
        dataclasses.replace(measured(name), features=dict.fromkeys(LAYERS, silent))
        for name in ("nf4", "fp4")
    ]
    folder = written(tmp_path / "silent", cells)
    found = [
        d
        for d in as_json("nf4", "fp4", at=folder)["comparisons"][0]["differences"]
        if "survival" in d["metric"]
    ]
    assert {(d["a"], d["difference"], d["low"], d["p"], d["verdict"]) for d in found} == {
        (None, None, None, None, "not tested")
    }
    line = row(run("nf4", "fp4", at=folder)[1], "feature_survival", "1")
    assert line.split()[2:] == ["–", "–", "–", "–", "not", "tested"]


# -- a real run -----------------------------------------------------------------------------------


@pytest.mark.large
def test_nf4_against_fp4_on_the_embedded_model(as_json, tmp_path):
    """The residual stream and the SAEs tell the two apart at every layer; nothing speaks for FP4."""
    from qsae_bench.gate.thresholds import Thresholds
    from qsae_bench.registry.entries import Selection, load_registry
    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    registry = load_registry()
    session = LocalSession(SessionOptions(registry, Thresholds({}), tmp_path, "test"))
    for cell in registry.select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4", "fp4"))
    ):
        session.require(cell)
        session.measure(cell)
    _, folder = write_session(session)
    session.close()
    (one,) = as_json("nf4", "fp4", at=folder)["comparisons"]
    assert one["sequences"] == 256
    said = {(d["metric"], d["layer"]): d["verdict"] for d in one["differences"]}
    for layer in (1, 3, 4):
        assert said["fvu_drift", layer] == said["perturbation_nsr", layer] == "better"
    assert "worse" not in said.values()
    kl = next(d for d in one["differences"] if d["metric"] == "kl_divergence")
    # heavy tails: a few positions carry most of the mean, so 256 sequences show its sign and no more
    assert kl["difference"] < 0


# -- the same as a report ---------------------------------------------------------------------------


def test_a_report_compares_first_and_shows_the_run_it_was_given(tmp_path):
    folder = written(tmp_path / "runs" / "one", [measured(name) for name in ("reference", "nf4", "fp4")])
    page = tmp_path / "r.html"
    status, out, err = typed("report", folder, "--compare", "nf4", "fp4", "-o", page, "--history", "none")
    assert (status, err) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert text.index("A = nf4 against B = fp4") < text.index("Run one")
    assert 'data-figure="comparison-0-differences"' in text
    status, out, err = typed(
        "report", folder, "--compare", "nf4", "fp4", "--format", "json", "--history", "none"
    )
    comparison, run = json.loads(out)["parts"]
    found = comparison["sections"][0]["blocks"]
    rows = [row for block in found if block["kind"] == "table" for row in block["rows"] if "A is" in row]
    said = json.loads(typed("compare", "nf4", "fp4", "--run", folder, "--format", "json")[1])
    assert [row["A is"].partition(" at n")[0] for row in rows] == [
        d["verdict"] for d in said["comparisons"][0]["differences"]
    ]
    better = sum(row["A is"] == "better" for row in rows)
    assert f"better in {better}" in comparison["banner"]
    assert run["title"] == "Run one"


def test_two_nights_are_compared_without_the_rest(tmp_path):
    one = written(tmp_path / "runs" / "one", [measured("reference"), measured("nf4")])
    two = written(tmp_path / "runs" / "two", [measured("reference"), measured("nf4", noise=0.4)])
    status, out, err = typed("report", "--compare", one, two, "--format", "markdown", "--history", "none")
    assert (status, err) == (0, "")
    assert "# A = " in out and "# Run one" not in out
    status, out, err = typed("report", one, two, "--compare", "nf4", "fp4")
    assert status == 2
    assert "takes one RUN" in err
