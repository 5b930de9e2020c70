"""What each metric declares about itself, held to its formula: no other module may know these facts."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import qsae_bench
from builders import Synthetic, measurement, one_line, synthetic
from paths import ROOT
from qsae_bench import metrics
from qsae_bench.errors import QsaeError
from qsae_bench.gate.threshold_file import parse_thresholds
from qsae_bench.metrics import GROUPS, METRICS, METRICS_VERSION, VERSIONS, headline
from qsae_bench.metrics.base import Metric, Tolerance
from qsae_bench.metrics.measurement import Measurement, Rows, reference_side
from qsae_bench.stats.bootstrap import column_sums, estimate

LAYER = 3
EVERY = list(METRICS.values())
SUMMED = [metric for metric in EVERY if metric.formula is not None]

NEITHER_SIDE = {
    "tokens", "bytes", "predicted", "nonfinite", "positions", "positions_all", "positions_bos", "sinks",
    "d_model",
}  # fmt: skip
"""columns that count positions, or belong to the cell alone"""


def named(metrics):
    return pytest.mark.parametrize("metric", metrics, ids=lambda metric: metric.key)


# -- nothing is left out ---------------------------------------------------------------------------


def test_a_fact_has_no_default_that_would_hide_its_omission():
    optional = {one.name for one in dataclasses.fields(Metric) if one.default is not dataclasses.MISSING}
    assert optional == {"needs"}


@pytest.mark.parametrize(
    "field", [one.name for one in dataclasses.fields(Metric) if one.default is dataclasses.MISSING]
)
def test_a_metric_that_leaves_a_fact_out_cannot_be_made(field):
    facts = {one.name: getattr(METRICS["fvu"], one.name) for one in dataclasses.fields(Metric)}
    del facts[field]
    with pytest.raises(TypeError, match=field):
        Metric(**facts)


@named(EVERY)
def test_its_facts_agree_with_each_other(metric):
    low, high = metric.limits
    assert low < high
    if metric.sides != "pair":
        assert metric.harmless is None, "one model has no value that is harmless for every model"
    if metric.harmless is not None:
        assert low <= metric.harmless <= high
    if metric.least_harm is not None:
        assert metric.gateable and metric.least_harm.amount(0.0) > 0 and not metric.least_harm.of
    if metric.suspicious is not None:
        assert (metric.better, metric.harmless) == ("lower", 0.0) and low < 0
        assert METRICS[metric.suspicious.of or metric.key].scope == metric.scope
    if metric.formula is not None:
        assert metric.interval == "bootstrap-t"
    if metric.interval == "none":
        assert not set(metric.headline_in) & {"comparison", "stability", "study"}
    assert not metric.not_own_when or metric.key in GROUPS["cost"]
    no_rows = GROUPS["cost"] | GROUPS["generation"] | GROUPS["weights"]
    assert (metric.over_shards == "rows") == (metric.key not in no_rows)
    assert "failure" not in metric.headline_in or metric.sides == "model", "it moves with its model alone"
    assert "pareto" not in metric.headline_in or metric.better != "neither"


def test_what_is_only_as_good_as_the_machine_is_never_gated():
    for key in GROUPS["cost"]:
        assert METRICS[key].gateable == (METRICS[key].interval == "rounds"), key


def test_views_take_what_they_can_show():
    assert headline("comparison") == (
        "perplexity_increase_pct", "kl_divergence", "top1_agreement", "perturbation_nsr", "fvu_drift",
        "feature_survival",
    )  # fmt: skip
    for key in headline("stability") + headline("study"):  # taken from the first rows alone
        assert METRICS[key].formula is not None
    assert set(headline("stability")) < set(headline("study"))


def test_every_version_says_what_it_changed():
    assert list(VERSIONS) == list(range(1, METRICS_VERSION + 1)) and all(VERSIONS.values())


def test_versions_that_differ_are_told_with_what_changed(monkeypatch):
    monkeypatch.setattr(metrics, "VERSIONS", {1: "first", 2: "a formula", 3: "the sinks"})
    monkeypatch.setattr(metrics, "METRICS_VERSION", 3)
    assert metrics.version_difference(3) == ""
    assert metrics.version_difference(1) == "metrics version 1, today's is 3 (2: a formula; 3: the sinks)"
    assert "of a newer qsae-bench" in metrics.version_difference(4)


def test_a_tolerance_is_the_larger_of_its_two_parts():
    assert Tolerance(1e-6, relative=1e-3).amount(0.0) == 1e-6
    assert Tolerance(1e-6, relative=1e-3).amount(-5.0) == 5e-3


# -- and all of it is true -------------------------------------------------------------------------


def sums_of(measured: Measurement, scope: str) -> dict[str, float]:
    rows = measured.rows if scope == "cell" else measured.layers[LAYER]
    found = column_sums(rows, np.ones((1, len(rows))))
    return {key: float(value[0]) for key, value in found.items()} | {"d_model": float(measured.d_model)}


def the_reference_itself(data: Synthetic) -> Measurement:
    """What a pass of the reference over the same sequences yields: from equal activations, not by renaming."""
    moved = measurement(data)
    equal = measurement(
        dataclasses.replace(
            data, q=data.r, nll_q=data.nll_r, kl=0 * data.kl, right_q=data.right_r, delta_p=0 * data.delta_p
        )
    )

    def columns(own, same):
        copies = {key: own.get(f"{key[:-1]}r", same[key]) for key in own if key.endswith("_q")}
        return same | copies

    def rows(own: Rows, same: Rows) -> Rows:
        # columns that the builders invent
        alike = {key: same.scalars["tokens"] for key in same.scalars if key == "top1_same"}
        nothing = ("only_", "sinks_gained", "sinks_lost")
        alike |= {key: 0 * same.scalars[key] for key in same.scalars if key.startswith(nothing)}
        return Rows(columns(own.scalars, same.scalars) | alike, columns(own.vectors, same.vectors))

    layers = {layer: rows(found, equal.layers[layer]) for layer, found in moved.layers.items()}
    return dataclasses.replace(moved, rows=rows(moved.rows, equal.rows), layers=layers)


def scrambled(sums: dict[str, float], keep: str) -> dict[str, float]:
    """Every column but those of one side, and those of neither, is another number."""
    rng = np.random.default_rng(1)
    return {
        key: value if key in NEITHER_SIDE or key.endswith(f"_{keep}") else value * rng.uniform(1.5, 3) + 1
        for key, value in sums.items()
    }


@named(SUMMED)
def test_the_sides_it_declares_are_those_that_its_formula_reads(metric):
    sums = sums_of(measurement(synthetic()), metric.scope)
    reads_one = {side: metric.formula(scrambled(sums, side)) == metric.formula(sums) for side in "qr"}
    expected = {"model": {"q"}, "reference": {"r"}, "pair": set()}[metric.sides]
    found = {side for side, same in reads_one.items() if same}
    assert found == expected or (found == {"q", "r"} and metric.sides != "pair")


@named([metric for metric in SUMMED if metric.harmless is not None])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_reference_against_itself_has_exactly_the_harmless_value(metric, seed):
    sums = sums_of(the_reference_itself(synthetic(seed)), metric.scope)
    assert metric.formula(sums) == pytest.approx(metric.harmless, abs=1e-12)


@named([metric for metric in SUMMED if metric.harmless is None])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_all_others_the_cells_rows_give_the_references_value(metric, seed):
    data = synthetic(seed)
    expected = metric.formula(sums_of(the_reference_itself(data), metric.scope))
    mirrored = reference_side(measurement(data))
    assert metric.formula(sums_of(mirrored, metric.scope)) == pytest.approx(expected, rel=1e-12)
    if metric.sides == "model" and metric.key != "nonfinite_share":
        assert expected != metric.formula(sums_of(measurement(data), metric.scope))


INVENTED = {"top1_agreement", *GROUPS["splice"]}
"""their columns are made up by the builders; the pass's own are tested with the pass"""


@named([metric for metric in SUMMED if metric.key not in INVENTED])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_intervals_stay_within_its_limits(metric, seed):
    found = estimate(measurement(synthetic(seed)), replicates=50)
    e = (found.cell if metric.scope == "cell" else found.layers[LAYER])[metric.key]
    low, high = metric.limits
    assert low <= e.low <= e.high <= high


# -- and it stands nowhere else --------------------------------------------------------------------

SOURCE = Path(qsae_bench.__file__).parent
LISTS = {
    "metrics/features.py", "metrics/loss.py",  # the values of a formula that has several
    "report/notes.py",  # three definitions of FVU, which it compares
}  # fmt: skip
MOST = 2


def lists_of_metrics(source: str) -> list[list[str]]:
    """Literals of more than MOST elements (or keys) each of which is a metric."""
    found = []
    for node in ast.walk(ast.parse(source)):
        inside = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        keys = [one.value for one in inside if isinstance(one, ast.Constant) and one.value in METRICS]
        if len(keys) > MOST and len(keys) == len(inside):
            found.append(keys)
    return found


def test_no_other_module_lists_metrics():
    """A list of keys is a fact about metrics that the next metric is missing from."""
    listed = {
        str(path.relative_to(SOURCE)): found
        for path in SOURCE.rglob("*.py")
        if (found := lists_of_metrics(path.read_text(encoding="utf-8")))
    }
    assert listed.keys() == LISTS, listed


def test_a_list_of_metrics_would_be_found():
    assert lists_of_metrics('ONE_SIDED = frozenset({"fvu", "mse", "l0"})') == [["fvu", "mse", "l0"]]
    assert lists_of_metrics('X = {"fvu": 1, "mse": 2, "l0": 3}') == [["fvu", "mse", "l0"]]
    assert not lists_of_metrics('X = ("fvu", "mse", "other", "l0")')


# -- and the page says the same --------------------------------------------------------------------

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
COLUMNS = ["metric", "unit", "one a", "describes", "better", "range", "interval", "gate"]
HEADINGS = {
    "Loss and output distribution": "loss", "Sinks": "sinks", "Residual stream": "residual",
    "SAE reconstruction": "reconstruction", "SAE features": "features",
    "SAE spliced into the model": "splice", "Generation": "generation", "Weights": "weights",
    "Cost": "cost",
}  # fmt: skip


def sections() -> dict[str, str]:
    parts = (part.partition("\n") for part in PAGE.split("\n## ")[1:])
    return {heading: text for heading, _, text in parts}


def entries_of(text: str) -> dict[str, str]:
    """What the list of a section says of each metric; of several in one entry, the same of each."""
    found: dict[str, str] = {}
    for entry in text.split("\n- ")[1:]:
        lead, _, said = entry.partition("** = ")
        for key in re.findall(r"`(\w+)`", lead):
            assert key not in found, f"{key} is explained twice"
            found[key] = said
    return found


def missing_parts(said: str) -> list[str]:
    """Name what an entry lacks: a formula, then what it is good for, then what it can not see."""
    formula, *rest = re.split(r"\*\*(Good for|Cannot see)\*\*", " ".join(said.split()))
    parts = {"formula": formula} | dict(zip(rest[::2], rest[1::2], strict=True))
    expected = ("formula", "Good for", "Cannot see")
    return [part for part in expected if not re.search(r"\w.*\.", parts.get(part, ""))]


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def as_range(limits: tuple[float, float]) -> str:
    low, high = (f"{end:g}".replace("inf", "∞").replace("-", "−") for end in limits)
    return f"{'(' if '∞' in low else '['}{low}, {high}{')' if '∞' in high else ']'}"


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_page_has_every_metric_of_a_group_with_its_facts(heading):
    header, *rows = rows_of(sections()[heading])
    assert header == COLUMNS
    expected = [
        [f"`{key}`", one.unit or "–", one.scope, one.sides, one.better, as_range(one.limits), one.interval,
         "yes" if one.gateable else "no"]
        for key, one in METRICS.items() if key in GROUPS[HEADINGS[heading]]
    ]  # fmt: skip
    assert rows == expected


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_page_explains_every_metric_of_a_group(heading):
    assert list(entries_of(sections()[heading])) == [
        one for one in METRICS if one in GROUPS[HEADINGS[heading]]
    ]


def test_the_page_has_every_group():
    assert set(HEADINGS.values()) == set(GROUPS)


@named(EVERY)
def test_the_page_says_what_a_metric_is_good_for_and_what_it_can_not_see(metric):
    said = {key: text for heading in HEADINGS for key, text in entries_of(sections()[heading]).items()}
    assert not missing_parts(said[metric.key])


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("a / b. **Good for** c. **Cannot see** d.", []),
        ("a / b. **Good for** c.", ["Cannot see"]),
        ("a / b. **Cannot\n  see** d.", ["Good for"]),
        ("a / b. **Good for** . **Cannot see** d.", ["Good for"]),
        ("**Good for** c. **Cannot see** d.", ["formula"]),
        ("", ["formula", "Good for", "Cannot see"]),
    ],
)
def test_an_entry_that_leaves_something_out_is_found(said, missing):
    assert missing_parts(said) == missing


def test_the_page_has_every_version():
    _, *rows = rows_of(sections()["Versions"])
    assert {int(version): changed for version, changed in rows} == dict(VERSIONS)


def test_messages_lead_to_the_page():
    with pytest.raises(QsaeError) as caught:
        parse_thresholds({"schema": 1, "m": {"q": {"fvu_scalar_bos": {"max": 1, "source": "x"}}}}, "t.toml")
    assert "see docs/metrics.md" in one_line(caught.value)
