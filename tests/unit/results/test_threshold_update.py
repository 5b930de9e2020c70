"""Thresholds that follow from a run: bounds, reasons, and runs that nothing is taken from."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import measurement, one_line, self_measurement, synthetic
from qsae_bench import metrics
from qsae_bench.errors import QsaeError
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.thresholds import Provenance, Threshold, table_name
from qsae_bench.gate.verdict import decide, reason_below_noise_floor
from qsae_bench.metrics.base import Least, Limits, Metric
from qsae_bench.metrics.measurement import merge
from qsae_bench.results.document import RunDocument, value_record
from qsae_bench.stats.bootstrap import Estimate, estimate
from threshold_runs import (
    CELL,
    GPU,
    HARDWARE,
    OWN,
    REFERENCE,
    bounds,
    cell,
    parse,
    run,
    updated,
    values,
    verdict,
)

# -- from a run to entries --------------------------------------------------------------------------


def test_every_gated_metric_becomes_an_entry_with_its_measurement():
    update, text = updated()
    assert [
        (change.kind, table_name(change.path), change.new.metric, change.new.bound)
        for change in update.changes
    ] == [
        ("tighter", "tiny_gemma3.nf4", "kl_divergence", 0.4),  # 2 × 0.2
        ("tighter", "tiny_gemma3.nf4", "top1_agreement", 0.9),  # 1 - 2 × 0.05
        ("tighter", "tiny_gemma3.nf4.layer3", "fvu_drift", 0.004),
    ]
    found = parse(text).find("tiny_gemma3", "nf4", "kl_divergence")
    assert found.provenance == Provenance(
        0.2, 0.1, 0.25, 32512, "NVIDIA H200",
        "torch 2.13.0, transformers 5.23.0, bitsandbytes 0.50.2, driver 580.1, CUDA 13.0",
        datetime.date(2026, 11, 24), "20261124T120000Z-abcd", "",
        "tiny", "f", 128,
    )  # fmt: skip
    assert not found.provisional
    assert str(found) == (
        "≤ 0.4 ([tiny_gemma3.nf4]: 2 × the value; measured 0.2 [0.1, 0.25] on 32512 tokens of tiny in sequences of 128, NVIDIA H200, 2026-11-24)"
    )


def test_the_reference_says_what_harmless_is():
    _, text = updated(run(REFERENCE, cell(gated=[verdict("fvu", 3), verdict("perplexity")])))
    found = bounds(text)
    assert found["tiny_gemma3.nf4.layer3 fvu"] == 0.084  # 0.076 + 2 · 0.004
    assert found["tiny_gemma3.nf4 perplexity"] == 4.4  # 4.2 + 2 · 0.1
    # on this cell's own tokens, where the reference was measured on fewer
    beside = {"metrics": values({"perplexity": (4.0, 4, 4)}), "layers": {}}
    _, text = updated(run(REFERENCE, cell(gated=[verdict("perplexity")], beside=beside)))
    assert bounds(text)["tiny_gemma3.nf4 perplexity"] == 4.6


BITS_PER_TOKEN = Metric(
    key="bits_per_token", unit="bits/token", scope="cell", sides="model", better="lower",
    limits=Limits.NOT_NEGATIVE, harmless=None, least_harm=Least.RELATIVE, suspicious=None, headline_in=(),
    interval="bootstrap-t", not_own_when=(), over_shards="rows",
    formula=lambda s: s["nll_q"] / s["tokens"] / math.log(2),
)  # fmt: skip
"""cross_entropy in another unit, as a user may add it"""


def records(found) -> dict:
    """Estimates of a cell as its record has them, exact: what is about values needs no intervals."""
    return {key: value_record(Estimate(e.value)).model_dump() for key, e in found.items()}


def ran_on() -> RunDocument:
    """A cell that was undecided and read on, where the text is harder, beside a reference that did not."""
    first, harder = synthetic(0), synthetic(1)
    harder = replace(harder, nll_r=harder.nll_r + 1, nll_q=harder.nll_q + 1)
    own, whole = measurement(first), merge([measurement(first), measurement(harder)])
    measured = CellResult(whole, estimate(whole, 100), looks=(1, 2), planned_tokens=2)
    beside = {"metrics": records(measured.reference_values.cell), "layers": {}}
    tokens = [int(one.rows.scalars["tokens"].sum()) for one in (own, whole)]
    reference = cell("reference", CELL, verdicts=[], tokens=tokens[0])
    reference["metrics"] = records(estimate(self_measurement(first), 100).cell)
    quantized = cell(
        "nf4", CELL, verdicts=[verdict("cross_entropy"), verdict("bits_per_token")], beside=beside
    )
    quantized |= {"metrics": records(measured.estimates.cell), "tokens": tokens[1]}
    return run(reference, quantized)


def test_a_metric_of_ones_own_gets_the_bound_of_the_quantity_that_it_is(monkeypatch):
    """Harm is measured from the reference on the cell's own tokens, for every metric of one model."""
    monkeypatch.setitem(metrics._METRICS, "bits_per_token", BITS_PER_TOKEN)
    document = ran_on()
    found = {
        change.new.metric: change.new.bound for change in updated(document, file="schema = 1\n")[0].changes
    }
    reference, quantized = document.cells
    ratio = found["bits_per_token"] * math.log(2) / found["cross_entropy"]
    assert ratio == pytest.approx(1, rel=0.005)  # bounds are rounded to two digits of the harm
    old = quantized.beside.metrics["cross_entropy"].value - reference.metrics["cross_entropy"].value
    assert old > 0.3, "the tokens make a difference that the test would see"


@pytest.mark.parametrize("metric", ["perplexity", "cross_entropy"])
def test_no_bound_follows_from_a_reference_on_other_tokens(metric):
    document = ran_on()
    reference, quantized = document.cells
    without = quantized.model_copy(update={"beside": None, "verdicts": [
        quantized.verdicts[0].model_copy(update={"metric": name}) for name in (metric, "kl_divergence")
    ]})  # fmt: skip
    update, _ = updated(document.model_copy(update={"cells": [reference, without]}), file="schema = 1\n")
    # of a pair's metric the reference's value does not depend on the tokens
    assert [change.new.metric for change in update.changes] == ["kl_divergence"]
    (note,) = update.notes
    assert f"{metric}: no bound: the run has no value of the reference on the same tokens" in note


def test_a_run_of_other_formulas_sets_no_thresholds():
    with pytest.raises(QsaeError) as caught:
        updated(run(metrics_version=metrics.METRICS_VERSION + 1))
    assert "can't set thresholds: metrics version" in one_line(caught.value)


def test_a_bound_on_weights_rests_on_no_text():
    found = cell(metrics=CELL | {"quantized_share": (1.0,)}, gated=[verdict("quantized_share")])
    _, text = updated(run(REFERENCE, found))
    assert parse(text).find("tiny_gemma3", "nf4", "quantized_share").provenance.text == ""


def test_the_noise_floor_of_the_run_is_heeded():
    floor = {"metrics": values({"kl_divergence": (0.7, 0.6, 0.8)}), "layers": {}}
    update, _ = updated(run(REFERENCE | {"noise_floor": floor}, cell()), reason="noise")
    change = next(change for change in update.changes if change.new.metric == "kl_divergence")
    assert change.new.bound == 0.7 and "noise floor" in change.new.source
    assert reason_below_noise_floor(change.new, Estimate(0.7, 0.6, 0.8), Estimate(0.0, 0.0, 0.0)) == ""


def test_metrics_that_a_threshold_bounds_are_updated_though_no_test_judged_them():
    unjudged = cell(verdicts=[])
    update, _ = updated(run(REFERENCE, unjudged))
    assert {change.new.metric for change in update.changes} == {
        "kl_divergence",
        "top1_agreement",
        "fvu_drift",
    }
    update, _ = updated(run(REFERENCE, unjudged), file="schema = 1\n")
    assert update.changes == ()


def test_a_metric_without_a_better_side_is_bounded_on_both_unless_the_file_has_one():
    document = run(
        cell("reference", OWN, {"l0_ratio": (1, 1, 1)}, verdicts=[]),
        cell(layer={"l0_ratio": (1.1, 1.0, 1.2)}, verdicts=[verdict("l0_ratio", 3, "unset")]),
    )
    update, text = updated(document, file="schema = 1\n")
    (change,) = update.changes
    assert change.new.ends == (0.8, 1.2) and change.new.source == "2 × the change"
    assert "l0_ratio = { min = 0.8, max = 1.2, " in text
    file = 'schema = 1\n[defaults.nf4]\nl0_ratio = { max = 1.5, source = "s" }\n'
    update, _ = updated(document, file=file)
    assert [(change.new.side, change.new.bound) for change in update.changes] == [("max", 1.2)]


def test_twice_from_the_same_run_changes_nothing():
    for options in ({}, {"hardware_specific": True}, {"margin": 5, "reason": "wide"}):
        _, text = updated(**options)
        again, same = updated(file=text, **options)
        assert again.needed == () and same == text
        if "reason" in options:  # it stays where it was given, and is not asked for again
            again, _ = updated(file=text, margin=5)
            assert again.needed == ()


def test_what_is_measured_too_coarsely_changes_nothing_and_is_said():
    coarse = CELL | {"kl_divergence": (0.2, 0.0, 0.5)}
    update, _ = updated(run(REFERENCE, cell(metrics=coarse)))
    assert "kl_divergence" not in {change.new.metric for change in update.changes}
    assert update.notes == (
        "tiny_gemma3-nf4 kl_divergence: no bound: [0, 0.5] reaches beyond the bound that its value gives, ≤ 0.4; "
        "one 3 times as long would do; ≤ 0.6 of [tiny_gemma3.nf4] stays",
    )  # (0.3 / 0.2)² = 2.25


# -- loosening --------------------------------------------------------------------------------------


def test_loosening_keeps_its_reason_as_long_as_the_bound_stands():
    update, text = updated(margin=5, reason="a new kernel")  # kl 1.0, above 0.6
    assert {change.new.metric: change.kind for change in update.changes} == {
        "kl_divergence": "looser", "top1_agreement": "looser", "fvu_drift": "looser",
    }  # fmt: skip
    assert [change.new.provenance.reason for change in update.changes] == ["a new kernel"] * 3
    assert "loosened: a new kernel" in str(parse(text).find("tiny_gemma3", "nf4", "kl_divergence"))
    later = run(run_id="20261125T120000Z-ef01")
    _, kept = updated(later, file=text, margin=5)
    assert parse(kept).find("tiny_gemma3", "nf4", "kl_divergence").provenance.reason == "a new kernel"
    assert "20261125T120000Z-ef01" in kept
    _, tight = updated(later, file=kept)
    assert "a new kernel" not in tight


def test_a_default_is_loosened_too_when_a_special_entry_takes_its_place():
    file = 'schema = 1\n[defaults.nf4]\nkl_divergence = { max = 0.3, source = "s", provisional = true }\n'
    update, _ = updated(file=file)
    assert [c.kind for c in update.changes if c.new.metric == "kl_divergence"] == ["looser"]


def test_a_general_entry_loosens_what_it_displaces_on_other_hardware():
    """It comes before the defaults of any hardware."""
    file = HARDWARE.replace("[tiny_gemma3.nf4]\nkl_divergence", "[tiny_gemma3.nf4]\nfvu")
    update, _ = updated(file=file)
    change = next(c for c in update.changes if c.new.metric == "kl_divergence")
    assert change.old.bound == 0.4 and change.new.bound == 0.4 and change.kind == "looser"
    assert {one.bound for one in change.displaced} == {0.4, 0.3}
    # a model's own entry for a hardware is not displaced
    change = next(c for c in update.changes if c.new.metric == "top1_agreement")
    assert (change.kind, {one.bound for one in change.displaced}) == ("tighter", {0.8})
    assert (
        "tiny_gemma3-nf4 top1_agreement: an entry of its own still decides on NVIDIA H200" in update.notes
    )


def test_hardware_specific_entries_stand_apart():
    _, text = updated(hardware_specific=True, reason="less exact there")
    special = '[tiny_gemma3.nf4.hardware."NVIDIA H200"]'
    lines = text.splitlines()
    at = lines.index(special)
    assert lines[at + 1].startswith("kl_divergence = { max = 0.4")
    assert special.replace('"]', '".layer3]') in lines
    found = parse(text)
    assert found.find("tiny_gemma3", "nf4", "kl_divergence", hardware="NVIDIA H200").bound == 0.4
    assert found.find("tiny_gemma3", "nf4", "kl_divergence", hardware="NVIDIA H100").bound == 0.6
    on_cpu = run(environment=GPU | {"device": "cpu"})
    _, text = updated(on_cpu, hardware_specific=True)
    assert '[tiny_gemma3.nf4.hardware."AMD EPYC"]' in text
    with pytest.raises(QsaeError, match="leave --hardware-specific out"):
        updated(run(environment={}), hardware_specific=True)


numbers = st.floats(0, 0.9).map(lambda x: round(x, 4))


@given(numbers, numbers, numbers, st.floats(1, 10), st.booleans())
def test_every_change_is_looser_exactly_where_it_lets_more_through(value, low, high, margin, specific):
    """And every bound holds for the run that it came from."""
    low, value, high = sorted((value, low, high))
    document = run(
        REFERENCE, cell(metrics={"kl_divergence": (value, low, high), "top1_agreement": (value, low, high)})
    )
    file = HARDWARE
    update, text = updated(document, file=file, margin=margin, reason="r", hardware_specific=specific)
    before, after = parse(file), parse(text)
    looser = set()
    for name in ("", "NVIDIA H200", "NVIDIA H100", "another"):
        for metric, layer in (
            ("kl_divergence", None),
            ("top1_agreement", None),
            ("fvu_drift", 3),
            ("fvu_drift", 4),
        ):
            old = before.find("tiny_gemma3", "nf4", metric, layer, name)
            new = after.find("tiny_gemma3", "nf4", metric, layer, name)
            if old and (new.bound > old.bound if new.side == "max" else new.bound < old.bound):
                looser.add(metric)
    assert {change.new.metric for change in update.changes if change.kind == "looser"} == looser
    for change in update.changes:
        measured = change.new.provenance
        estimate = Estimate(measured.measured, measured.low, measured.high)
        assert decide(change.new.metric, estimate, change.new, 1).status == "pass"


# -- runs that nothing is taken from ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        (run(REFERENCE, cell(), cell("int8", status="skipped", reason="needs\na GPU")), ["-int8", "skipped", "needs a GPU"]),
        (run(REFERENCE, cell(), cell("int8", status="oom", reason="8 GiB")), ["tiny_gemma3-int8 (oom: 8 GiB)"]),
        (run(REFERENCE, cell(), cell("int8", status="error", reason="x")), ["tiny_gemma3-int8 (error: x)"]),
        (run(REFERENCE, cell(reason="non-finite values")), ["tiny_gemma3-nf4 (invalid: non-finite values)"]),
        (run(REFERENCE | {"reason": "perplexity 900"}, cell()), ["tiny_gemma3-reference (invalid: perplexity 900)"]),
        (
            run(REFERENCE, cell(gated=[verdict("splice_excess", 3, "invalid", "was not measured")])),
            ["tiny_gemma3-nf4 (invalid: splice_excess: was not measured)"],
        ),
        (run(synthetic=True), ["random weights"]),
        (run(protocol="study"), ["'study'", "without --protocol"]),
        (run(REFERENCE), ["no measured quantized cell", "it has: none"]),
        (run(REFERENCE, cell(metrics={"kl_divergence": (None,), "top1_agreement": (1,)})), ["kl_divergence is not finite"]),
    ],
)  # fmt: skip
def test_what_a_run_may_not_set(document, parts):
    with pytest.raises(QsaeError) as caught:
        updated(document)
    message = one_line(caught.value)
    assert [part for part in [*parts, "20261124T120000Z-abcd"] if part not in message] == [], message


def test_a_threshold_below_the_noise_floor_is_no_fault_of_the_cell():
    """Else the way out that its message names, loosening it, would be barred."""
    reason = reason_below_noise_floor(
        Threshold("kl_divergence", "max", 0.1, "s"), Estimate(0.2), Estimate(0.0)
    )
    update, _ = updated(run(REFERENCE, cell(gated=[verdict("kl_divergence", None, "invalid", reason)])))
    assert update.changes


def test_what_is_suspicious_is_said():
    update, _ = updated(run(REFERENCE, cell(gated=[verdict("fvu_drift", 3, "suspicious", "too good")])))
    assert update.notes == ("tiny_gemma3-nf4 layer 3 fvu_drift is suspicious: too good",)
