"""Which entry of thresholds.toml decides, and what a bound says of itself."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.gate.threshold_file import parse_thresholds
from qsae_bench.gate.thresholds import Threshold, Thresholds, table_name

MODELS = ("gemma3_12b", "tiny_gemma3")
QUANTIZATIONS = ("nf4", "int8")


def parse(text: str) -> Thresholds:
    return parse_thresholds(tomllib.loads(text), "t.toml")


LAYERED = """
schema = 1
[defaults.nf4]
perplexity_increase_pct = { max = 1.0, source = "defaults" }
cross_entropy_delta = { max = 1.1, source = "defaults" }
fvu_drift = { max = 1.2, source = "defaults" }
mse = { max = 1.3, source = "defaults" }
fvu = { max = 1.4, source = "defaults" }
[defaults.nf4.layer24]
fvu_drift = { max = 2.2, source = "defaults layer" }
fvu = { max = 2.4, source = "defaults layer" }
[gemma3_12b.nf4]
perplexity_increase_pct = { max = 3.0, source = "model" }
fvu = { max = 3.4, source = "model" }
reconstruction_cosine = { min = 0.5, source = "model" }
[gemma3_12b.nf4.layer24]
fvu = { max = 4.4, source = "model layer" }
"""


@pytest.mark.parametrize(
    ("model", "quantization", "metric", "layer", "bound"),
    [
        ("gemma3_12b", "nf4", "fvu", 24, 4.4),  # the layer's own
        ("gemma3_12b", "nf4", "fvu", 25, 3.4),  # another layer: the model's
        ("tiny_gemma3", "nf4", "fvu", 24, 2.4),  # another model: the defaults' layer
        ("tiny_gemma3", "nf4", "fvu", 25, 1.4),
        ("gemma3_12b", "nf4", "fvu_drift", 24, 2.2),  # the model says nothing about it
        ("gemma3_12b", "nf4", "mse", 24, 1.3),
        ("gemma3_12b", "nf4", "perplexity_increase_pct", None, 3.0),
        ("gemma3_12b", "nf4", "cross_entropy_delta", None, 1.1),
        ("gemma3_12b", "int8", "fvu", 24, None),  # another quantization has none
        ("gemma3_12b", "nf4", "l0_ratio", 24, None),
        ("tiny_gemma3", "nf4", "reconstruction_cosine", 24, None),
    ],
)
def test_the_most_special_entry_decides(model, quantization, metric, layer, bound):
    found = parse(LAYERED).find(model, quantization, metric, layer)
    assert (found.bound if found else None) == bound


def test_what_a_threshold_says_of_itself():
    found = parse(LAYERED).find("gemma3_12b", "nf4", "reconstruction_cosine", 24)
    expected = Threshold("reconstruction_cosine", "min", 0.5, "model", False, "gemma3_12b.nf4")
    assert found == expected
    assert str(found) == "≥ 0.5 ([gemma3_12b.nf4]: model)"


def test_a_two_sided_bound():
    found = Threshold.between("l0_ratio", 0.9, 1.1, "s")
    assert (found.side, found.bound, found.lower) == ("max", 1.1, 0.9)
    assert found.ends == found.allowed == (0.9, 1.1) and found.limit == "0.9 to 1.1"
    assert [found.nearest(value) for value in (0.0, 0.99, 1.01, 7.0)] == [0.9, 0.9, 1.1, 1.1]
    assert Threshold.between("l0_ratio", 0.9, None, "s") == Threshold("l0_ratio", "min", 0.9, "s")
    assert Threshold.between("l0_ratio", None, 1.1, "s") == Threshold("l0_ratio", "max", 1.1, "s")
    assert Threshold("l0_ratio", "min", 0.9, "s").allowed == (0.9, float("inf"))


def test_provisional_is_kept_and_shown():
    text = 'schema = 1\n[defaults.nf4]\nfvu = { max = 1, source = "s", provisional = true }\n'
    found = parse(text).find("gemma3_12b", "nf4", "fvu", 24)
    assert found is not None and found.provisional
    assert "provisional" in str(found)


def test_metrics_for_a_cell_and_for_a_layer():
    thresholds = parse(LAYERED)
    assert thresholds.metrics_for("gemma3_12b", "nf4", None) == {
        "perplexity_increase_pct", "cross_entropy_delta",
    }  # fmt: skip
    assert thresholds.metrics_for("gemma3_12b", "nf4", 3) == {
        "fvu", "fvu_drift", "mse", "reconstruction_cosine",
    }  # fmt: skip
    assert thresholds.metrics_for("gemma3_12b", "int8", None) == frozenset()


HARDWARE = """
schema = 1
[defaults.nf4]
fvu = { max = 1, source = "s" }
mse = { max = 1, source = "s" }
[defaults.nf4.layer24]
fvu = { max = 2, source = "s" }
[defaults.nf4.hardware."NVIDIA H100"]
fvu = { max = 3, source = "s" }
[gemma3_12b.nf4]
kl_divergence = { max = 4, source = "s" }
l0 = { max = 4, source = "s" }
[gemma3_12b.nf4.hardware."NVIDIA H100"]
kl_divergence = { max = 5, source = "s" }
[gemma3_12b.nf4.hardware."NVIDIA H100".layer24]
l0 = { max = 6, source = "s" }
"""
H100, H200 = "NVIDIA H100", "NVIDIA H200"


@pytest.mark.parametrize(
    ("model", "metric", "layer", "hardware", "bound", "fallback"),
    [
        ("gemma3_12b", "kl_divergence", None, H100, 5, ""),
        ("gemma3_12b", "kl_divergence", None, H200, 4, f"no entry for {H200}"),
        ("gemma3_12b", "kl_divergence", None, "", 4, ""),  # unknown hardware: nothing to fall back from
        ("gemma3_12b", "l0", 24, H100, 6, ""),
        ("gemma3_12b", "l0", 25, H100, 4, ""),  # no hardware has an entry for this layer
        ("gemma3_12b", "l0", 24, H200, 4, f"no entry for {H200}"),
        ("tiny_gemma3", "fvu", 24, H100, 3, ""),  # this hardware beats the general table of the layer
        ("tiny_gemma3", "fvu", 24, H200, 2, f"no entry for {H200}"),
        ("gemma3_12b", "mse", 24, H200, 1, ""),  # no hardware has one: ordinary output stays as it is
    ],
)
def test_hardware_has_tables_of_its_own(model, metric, layer, hardware, bound, fallback):
    found = parse(HARDWARE).find(model, "nf4", metric, layer, hardware)
    assert (found.bound, found.fallback) == (bound, fallback)


def test_a_general_bound_that_stands_in_says_so():
    found = parse(HARDWARE).find("gemma3_12b", "nf4", "kl_divergence", None, H200)
    assert str(found) == "≤ 4 ([gemma3_12b.nf4], general: no entry for NVIDIA H200; s)"
    found = parse(HARDWARE).find("gemma3_12b", "nf4", "kl_divergence", None, H100)
    assert str(found) == '≤ 5 ([gemma3_12b.nf4.hardware."NVIDIA H100"]: s)'


def test_metrics_for_known_hardware():
    text = 'schema = 1\n[gemma3_12b.nf4.hardware."NVIDIA H100"]\nfvu = { max = 1, source = "s" }\n'
    assert parse(text).metrics_for("gemma3_12b", "nf4", 3, H100) == {"fvu"}
    assert parse(text).metrics_for("gemma3_12b", "nf4", 3) == frozenset()
    assert parse(text).metrics_for("gemma3_12b", "nf4", None, H100) == frozenset()


@st.composite
def lookups(draw):
    """Thresholds in tables that could all apply to one of the cells asked for."""
    owners = [(owner, quantization) for owner in (*MODELS, "defaults") for quantization in QUANTIZATIONS]
    paths = [
        (*owner, *special, *layer)
        for owner in owners
        for special in ((), ("hardware", H100), ("hardware", H200))
        for layer in ((), ("layer3",), ("layer4",))
    ]
    chosen = draw(st.lists(st.sampled_from(paths), unique=True))
    return Thresholds(
        {
            path: {"fvu": Threshold("fvu", "max", float(number), "s", table=table_name(path))}
            for number, path in enumerate(chosen)
        }
    )


def best(thresholds, model, quantization, layer, hardware):
    """Every table that applies, ranked: the model's, then this hardware's, then the layer's. And the fallback."""
    ranked = []
    for path, found in thresholds.tables.items():
        own, special, at = path[0] == model, "hardware" in path, path[-1] == f"layer{layer}"
        applies = path[1] == quantization and (own or path[0] == "defaults")
        applies = applies and (at or not path[-1].startswith("layer"))
        if applies:
            here = special and path[3] == hardware
            ranked.append(((own, special, at), here, found["fvu"]))
    usable = [(rank, entry) for rank, here, entry in ranked if here or not rank[1]]
    if not usable:
        return None
    rank, entry = max(usable, key=lambda one: one[0])
    others = [other for other, here, _ in ranked if other[1] and not here and other[0] >= rank[0]]
    missed = bool(hardware) and not rank[1] and bool(others)
    return replace(entry, fallback=f"no entry for {hardware}" if missed else "")


@given(
    lookups(), st.sampled_from(MODELS), st.sampled_from(QUANTIZATIONS), st.sampled_from([None, 3, 4, 5]),
    st.sampled_from(["", H100, H200, "another"]),
)  # fmt: skip
def test_find_against_a_ranking_of_every_table(thresholds, model, quantization, layer, hardware):
    expected = best(thresholds, model, quantization, layer, hardware)
    assert thresholds.find(model, quantization, "fvu", layer, hardware) == expected


def test_runs_behind_the_bounds_of_a_cell():
    """Of its own tables, with those of its layers and of hardware; defaults are no cell's."""
    found = parse(
        """
schema = 1
[defaults.nf4]
kl_divergence = { max = 1, source = "d", run = "of a default" }
[tiny_gemma3.nf4]
kl_divergence = { max = 1, source = "m", run = "first" }
top1_agreement = { min = 0.9, source = "by hand" }
[tiny_gemma3.nf4.hardware."NVIDIA H200".layer3]
fvu_drift = { max = 1, source = "m", run = "second" }
[tiny_gemma3.int8]
kl_divergence = { max = 1, source = "m", run = "of another cell" }
"""
    )
    assert found.runs_behind("tiny_gemma3", "nf4") == {"first", "second"}
    assert found.runs_behind("gemma3_12b", "nf4") == frozenset()
