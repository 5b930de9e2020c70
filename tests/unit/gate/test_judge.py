"""Which gates of a measured cell are judged, when more tokens are wanted, and what makes a cell invalid."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from builders import measurement, self_measurement, synthetic, threshold
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import Judge, mark_invalid
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.registry.sae_spec import Bounds, SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec
from qsae_bench.stats.bootstrap import Estimate, estimate

MODEL = ModelSpec("tiny", "./nowhere", 4, 6, (3,), SaeSpec(6, folder="x"), "tiny")
CELL, REFERENCE = (Cell(MODEL, QuantizationSpec(name, "none")) for name in ("nf4", "reference"))
KL = GatedMetric("kl_divergence")


@pytest.fixture
def measured():
    data = synthetic()
    results = {}
    for cell, rows in ((CELL, measurement(data)), (REFERENCE, self_measurement(data))):
        results[cell] = CellResult(rows, estimate(rows, replicates=50), (100,), 200)
    return results


def judge(measured, bounds, **settings):
    entries = {metric: threshold(bound, metric=metric) for metric, bound in bounds.items()}
    thresholds = Thresholds({("defaults", "nf4"): entries})
    return Judge(
        thresholds, measured, lambda _: REFERENCE, settings.pop("strict", False), "show", **settings
    )


def test_only_an_inconclusive_gate_wants_more_tokens(measured):
    kl = measured[CELL].estimates.cell["kl_divergence"]
    for bound, wanted in ((kl.value, True), (kl.value + 100, False), (kl.low / 100, False)):
        assert judge(measured, {"kl_divergence": bound}).undecided(CELL, [KL]) == wanted
    open_gate = judge(measured, {"kl_divergence": kl.value})
    assert not open_gate.undecided(REFERENCE, [KL])
    measured[CELL].invalid_reason = "overflow"
    assert not open_gate.undecided(CELL, [KL])


def test_a_gate_without_a_threshold_is_unset_and_an_optional_one_is_not_judged(measured):
    none = judge(measured, {})
    assert none.verdict(CELL, KL).status == "unset"
    assert none.verdict(CELL, replace(KL, metric="perplexity", optional=True)) is None
    assert [verdict.metric for verdict in measured[CELL].verdicts] == ["kl_divergence"]


def test_a_verdict_is_recorded_once_and_replaced_when_there_are_more_tokens(measured):
    one = judge(measured, {"kl_divergence": 100.0})
    first = one.verdict(CELL, KL)
    assert (one.verdict(CELL, KL), measured[CELL].verdicts) == (first, [first])
    measured[CELL].extend(measurement(synthetic(1)), SimpleNamespace(looks=(100, 200)))
    second = one.verdict(CELL, KL)
    assert measured[CELL].verdicts == [second]
    assert (second.tokens > first.tokens, second.looks) == (True, 2)


def test_what_was_not_measured_is_invalid_with_what_to_do(measured):
    measured[CELL].estimates.layers[3].pop("splice_loss")
    found = judge(measured, {}).verdict(CELL, GatedMetric("splice_loss", 3))
    assert (found.status, found.reason) == ("invalid", "splice_loss was not measured: run with --splice")


def test_a_threshold_below_the_noise_floor_is_invalid(measured):
    floor = measured[REFERENCE].estimates
    measured[REFERENCE].noise_floor = replace(floor, cell=floor.cell | {"kl_divergence": Estimate(0.5)})
    assert "below the noise floor" in judge(measured, {"kl_divergence": 0.1}).verdict(CELL, KL).reason
    measured[CELL].verdicts = []
    assert judge(measured, {"kl_divergence": 100.0}).verdict(CELL, KL).status == "pass"


def test_suspicious_fails_only_a_strict_judge(measured):
    verdict = judge(measured, {"kl_divergence": 100.0}).verdict(CELL, KL)
    suspicious = replace(verdict, status="suspicious")
    assert [judge(measured, {}, strict=strict).fails(suspicious) for strict in (False, True)] == [
        False,
        True,
    ]


def test_a_message_attributes_the_failure_once(measured):
    asked = []
    one = judge(
        measured, {"kl_divergence": 1e-9}, attribute=lambda *about: asked.append(about) or "the setup: x"
    )
    verdict = one.verdict(CELL, KL)
    for _ in range(2):
        message = one.message(CELL, measured[CELL].verdicts[0])
        assert "moved      the setup: x" in message and message.endswith("show -k tiny-nf4")
    assert asked == [(CELL, verdict)]


def test_what_makes_a_whole_cell_invalid(measured):
    insane = replace(MODEL, reference_bounds={"perplexity": Bounds(1.0, 1.0001)})
    reference = measured[REFERENCE]
    mark_invalid(replace(REFERENCE, model=insane), reference, None)
    assert "outside the sane range" in reference.invalid_reason
    mark_invalid(CELL, measured[CELL], reference)
    assert measured[CELL].invalid_reason.startswith("its reference is not sane: perplexity")
    measured[CELL].quantized = SimpleNamespace(share=0.0)
    mark_invalid(CELL, measured[CELL], reference)
    assert "left the model unquantized" in measured[CELL].invalid_reason
