"""What moved: by construction of both nights, through the pure function and through a gate's message."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import measurement, self_measurement, synthetic, threshold
from nights import night
from qsae_bench.gate.attribution import (
    FailedGate,
    Setup,
    Snapshot,
    attribute,
    choose_baseline,
    version_differences,
)
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.judge import Judge
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec
from qsae_bench.results.history.queries import last_accepted
from qsae_bench.results.history.store import History
from qsae_bench.results.history.url import default_url
from qsae_bench.run.attributor import Attributor
from qsae_bench.stats.bootstrap import Estimate, estimate

SETUP = Setup("NVIDIA H200", {"torch": "2.13.0", "bitsandbytes": "0.50.2"}, "ab" * 16, "abc")
GATE = FailedGate("tiny", "nf4", "fvu_drift", 3, "≤ 0.01")


def around(value, width=0.0):
    return Estimate(value, value - width, value + width)


def snapshot(
    loss=1.5, fvu=0.08, own_loss=1.52, own_fvu=0.085, tokens=2032, setup=SETUP, bound="≤ 0.01", **kept
):
    return Snapshot(
        setup, tokens,
        {"cross_entropy": around(loss, 0.05), "fvu": around(fvu, 0.002), "l0": around(40.0, 0.5)},
        {
            "cross_entropy": around(own_loss, 0.05), "fvu": around(own_fvu, 0.002), "l0": around(41.0, 0.5),
            "fvu_drift": around(own_fvu - fvu, 0.0004),
        },
        bound, **kept,
    )  # fmt: skip


BEFORE = snapshot(run_id="20260101T030000Z-0001", started="2026-01-01T03:00:00+00:00")


def moved(now, before=BEFORE, noise=None, gate=GATE):
    found = attribute(gate, now, before, noise or {})
    assert len(found.text.splitlines()) == 1
    return found


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"own_fvu": 0.1}, "quantized"),
        ({"fvu": 0.06}, "reference"),
        ({"fvu": 0.06, "own_fvu": 0.1}, "both"),
        ({"loss": 1.6}, "reference"),
        ({}, "neither"),
        ({"bound": "≤ 0.004"}, "neither"),
    ],
)
def test_who_was_moved_is_named(changes, kind):
    assert moved(snapshot(**changes)).moved == kind


def test_the_texts():
    """What a person reads, word by word."""
    against = "; against run 20260101T030000Z-0001 of 2026-01-01, the last accepted one"
    still = "the reference (cross_entropy 1.5, fvu 0.08, l0 40) did not"
    assert moved(snapshot(own_fvu=0.1)).text == (
        f"the quantized model: fvu_drift 0.005 → 0.02 ± 0.0004; {still}{against}"
    )
    assert moved(snapshot(fvu=0.06)).text == (
        "the reference: fvu 0.08 → 0.06 ± 0.002; the quantized model (cross_entropy 1.52, fvu 0.085, l0 41) "
        f"did not{against}"
    )
    assert moved(snapshot(fvu=0.06, own_fvu=0.1)).text == (
        "both models: the reference fvu 0.08 → 0.06 ± 0.002; the quantized model fvu 0.085 → 0.1 ± 0.002"
        f"{against}"
    )
    as_before = (
        "neither model: the reference (cross_entropy 1.5, fvu 0.08, l0 40), the quantized model "
        "(fvu_drift 0.005) as before"
    )
    tighter = attribute(replace(GATE, bound="≤ 0.004"), snapshot(bound="≤ 0.004"), BEFORE, {})
    assert tighter.text == f"{as_before}; the threshold moved, ≤ 0.01 → ≤ 0.004{against}"
    lies = (
        f"{as_before}; the value lies at its threshold, where it passed before{against}, 3 failed runs ago"
    )
    assert moved(snapshot(), replace(BEFORE, failed_since=3)).text == lies
    newer = replace(SETUP, versions={"torch": "2.14.0", "bitsandbytes": "0.50.2"}, corpus="cd" * 16)
    assert moved(snapshot(own_fvu=0.1, setup=newer)).text == (
        "the setup: corpus abababab → cdcdcdcd, torch 2.13.0 → 2.14.0; with it the quantized model "
        f"(fvu_drift 0.005 → 0.02 ± 0.0004); {still}{against} on this hardware"
    )
    assert attribute(GATE, snapshot(), None, {}).text == (
        "not known: no accepted run of tiny-nf4 on NVIDIA H200 to compare with"
    )


def test_another_setup_that_moved_nothing_is_not_blamed():
    newer = replace(SETUP, versions={"torch": "2.14.0", "bitsandbytes": "0.50.2"})
    found = moved(snapshot(setup=newer))
    assert found.moved == "neither"
    assert "though torch 2.13.0 → 2.14.0" in found.text


def test_numerics_move_nobody():
    """Below a ten-thousandth of a value on the same text, below the noise floor where that was measured."""
    assert moved(snapshot(loss=1.5 * (1 + 0.9e-4))).moved == "neither"
    assert moved(snapshot(loss=1.5 * (1 + 3e-4))).moved == "reference"
    assert moved(snapshot(loss=1.5 * (1 + 3e-4)), noise={"cross_entropy": 0.001}).moved == "neither"
    assert moved(snapshot(own_fvu=0.085 + 0.00003)).moved == "neither"
    assert moved(snapshot(own_fvu=0.085 + 0.00006)).moved == "quantized"  # a tenth of ± 0.0004 is between


def test_what_is_not_finite_moved():
    broken = snapshot()
    broken = replace(broken, own=broken.own | {"fvu_drift": Estimate(math.nan)})
    found = moved(broken)
    assert found.moved == "quantized"
    assert "fvu_drift 0.005 → not finite" in found.text
    assert moved(broken, replace(broken, run_id="r", started="2026")).moved == "neither"


def test_a_gate_on_the_reference_itself_knows_no_other_model():
    gate = FailedGate("tiny", "reference", "fvu", 3)
    alone = replace(snapshot(fvu=0.2), own={})
    found = moved(alone, replace(BEFORE, own={}), gate=gate)
    assert found.moved == "reference"
    assert "quantized" not in found.text


def test_a_run_without_the_numbers_tells_nothing():
    found = moved(snapshot(), replace(BEFORE, own={}, reference={}))
    assert found.moved == "unknown"


@pytest.mark.parametrize(("same", "before", "after"), [(True, 16, 128), (True, 128, 16), (False, 64, 64)])
def test_the_draw_of_the_text_moves_nobody(same, before, after):
    """Means of one population: on one text read further, or on two texts. At most 7.5% are called moved."""
    rng = np.random.default_rng(before)
    wrong = 0
    for _ in range(600):
        rows = rng.gamma(2.0, 1.0, size=256)
        then = rows[:before]
        now = rows[:after] if same else rows[-after:]
        estimates = [around(r.mean(), 1.96 * r.std(ddof=1) / math.sqrt(len(r))) for r in (then, now)]
        setup = SETUP if same else replace(SETUP, corpus="cd" * 16)
        old, new = (
            Snapshot(s, len(r), {}, {"fvu_drift": e})
            for s, r, e in zip((SETUP, setup), (then, now), estimates, strict=True)
        )
        wrong += moved(new, replace(old, run_id="r", started="2026")).moved != "neither"
    assert wrong <= 0.075 * 600


def test_a_move_is_seen_on_another_number_of_tokens():
    assert moved(snapshot(own_fvu=0.1, tokens=16256)).moved == "quantized"


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-10, 10)
estimates = st.builds(
    lambda value, width: around(value, abs(width)) if width is not None else Estimate(value),
    numbers, st.none() | st.floats(0, 5),
)  # fmt: skip
sides = st.dictionaries(st.sampled_from(["cross_entropy", "fvu", "l0", "fvu_drift"]), estimates)
setups = st.builds(
    Setup, st.just("NVIDIA H200"), st.dictionaries(st.sampled_from(["torch", "driver"]), st.sampled_from("12")),
    st.sampled_from(["", "ab"]), st.sampled_from(["", "r1", "r2"]),
)  # fmt: skip
snapshots = st.builds(Snapshot, setups, st.integers(0, 10**9), sides, sides, st.sampled_from(["", "≤ 1"]))


@settings(max_examples=300, deadline=None)
@given(snapshots, st.none() | snapshots, st.dictionaries(st.sampled_from(["fvu"]), st.floats(0, 1)))
def test_any_two_nights_give_one_line(now, before, noise):
    found = attribute(GATE, now, before, noise)
    assert len(found.text.splitlines()) == 1
    assert (found.moved == "setup") <= bool(before and before.setup.differences(now.setup))
    if before is not None and before == now:
        assert found.moved in ("neither", "unknown")


def test_differences_are_named_from_then_to_now():
    assert version_differences({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == ["c none → 3", "b 2 → none"]
    other = Setup("CPU", SETUP.versions, SETUP.corpus, "def")
    assert SETUP.differences(other) == ["hardware NVIDIA H200 → CPU", "model revision abc → def"]
    assert SETUP.differences(replace(SETUP, revision="")) == []  # not known is not another


def test_the_newest_of_the_same_setup_is_chosen():
    other = replace(SETUP, corpus="cd")
    assert choose_baseline([other, SETUP, SETUP], SETUP) == 1
    assert choose_baseline([other, other], SETUP) == 0
    assert choose_baseline([], SETUP) is None


# -- from kept runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"fvu": 0.12}, "quantized"),
        ({"reference_fvu": 0.06}, "reference"),
        ({"reference_fvu": 0.06, "fvu": 0.12}, "both"),
        ({"bound": 0.004}, "neither"),
        ({"fvu": 0.12, "versions": {"torch": "2.14.0"}}, "setup"),
    ],
)
def test_a_planted_move_is_named_from_the_history(tmp_path, changes, kind):
    """Tonight's document read as a running session would have it, against what the history kept."""
    with History.open(default_url(tmp_path), create=True) as history:
        for number in range(1, 4):
            history.add(night(number))
        history.add(night(4, status="fail", **changes))
        gate = replace(GATE, bound=f"≤ {changes.get('bound', 1.0):g}")
        # tonight is itself kept, as an accepted run, in a history of its own: a way to read it alike
        with History.open(default_url(tmp_path / "tonight"), create=True) as own:
            own.add(night(4, **changes))
            setup = Setup("NVIDIA H200", {}, "")
            now, _ = last_accepted(own, gate, setup)
        before, _ = last_accepted(history, gate, now.setup)
    found = attribute(gate, now, before, {})
    assert found.moved == kind
    assert night(3).run_id in found.text
    assert "1 failed run ago" in found.text


# -- in a gate's message --------------------------------------------------------------------------


def test_a_history_that_can_not_be_read_costs_a_gate_nothing(tmp_path):
    (tmp_path / "history.sqlite").write_bytes(b"no database" * 100)
    message = planted(tmp_path)
    assert "FAIL" in message
    assert "moved      not known: " in message
    assert "file is not a database" in message


def test_without_a_history_the_message_has_no_such_line(tmp_path):
    assert "moved " not in planted(tmp_path, url="")


def test_a_first_night_has_nothing_to_compare_with(tmp_path):
    assert "moved      not known: no accepted run of tiny-nf4 on NVIDIA H200" in planted(tmp_path)
    assert not (tmp_path / "history.sqlite").exists()  # looking makes no file


def test_a_failing_gate_says_what_moved_and_its_verdict_keeps_it(tmp_path):
    with History.open(default_url(tmp_path), create=True) as history:
        history.add(night(1, versions={"torch": "1.0"}))
    message = planted(tmp_path)
    assert "torch 1.0 → " in message
    assert (
        "against run 20260101T030000Z-0001 of 2026-01-01, the last accepted one on this hardware" in message
    )


def test_a_run_at_another_batch_size_is_said_to_be_one(tmp_path):
    """Setup's other parts are equal or named too; the live session and the history spell this one alike."""
    corpus = night().corpus["tiny"].model_copy(update={"batch_size": 8}).model_dump()
    with History.open(default_url(tmp_path), create=True) as history:
        history.add(night(1, corpus={"tiny": corpus}))
    assert "batch size 8 → 16" in planted(tmp_path)
    with History.open(default_url(tmp_path), create=True) as history:
        history.add(night(2))
    assert "batch size" not in planted(tmp_path)


def test_a_run_of_another_protocol_is_not_compared_with(tmp_path):
    with History.open(default_url(tmp_path), create=True) as history:
        history.add(night(1, protocol="study"))
    assert "no accepted run of tiny-nf4" in planted(tmp_path)


@pytest.mark.parametrize(
    ("sae", "synthetic", "layer", "name"),
    [
        (
            SaeSpec(6, release="acme-{width}", id_template="l{layer}/{width}", width="16k"),
            False,
            9,
            "acme-16k/l9/16k",
        ),
        (SaeSpec(6, folder="/home/me/saes"), False, 3, "local/layer3"),
        (SaeSpec(6, folder="package:tiny/saes"), False, 3, "package:tiny/saes/layer3"),
        (SaeSpec(6, folder="package:tiny/saes"), True, 3, "random/layer3"),
        (SaeSpec(6, folder="x"), False, None, ""),
    ],
)
def test_a_layers_sae_is_named_as_in_a_run_document(sae, synthetic, layer, name):
    model = ModelSpec("m", "./m", 4, 6, (3, 9), sae, "tiny", synthetic=synthetic)
    assert model.sae_name(layer) == name


def planted(folder, url=None):
    """The message of a gate that fails on rows of plain numbers, with the history of ``folder``."""
    data = synthetic()
    model = ModelSpec("tiny", "./nowhere", 4, 6, (3,), SaeSpec(6, folder="x"), "tiny")
    cell, reference = (Cell(model, QuantizationSpec(name, "none")) for name in ("nf4", "reference"))
    measured = {}
    for one, rows in ((cell, measurement(data)), (reference, self_measurement(data))):
        measured[one] = CellResult(rows, estimate(rows, replicates=50), (1,), 1, revision="abc")
    history = default_url(folder) if url is None else url
    session = SimpleNamespace(
        options=SimpleNamespace(history=history, selection=SimpleNamespace(protocol="")), measured=measured,
        registry=SimpleNamespace(reference_of=lambda _: reference), hardware="NVIDIA H200",
        corpora={cell.model.name: SimpleNamespace(fingerprint="ab" * 16, batch_size=16)},
        environment={"versions": {}},
    )  # fmt: skip
    bound = replace(threshold(1e-9, metric="kl_divergence"), table="defaults.nf4")
    judge = Judge(
        Thresholds({("defaults", "nf4"): {"kl_divergence": bound}}), measured, lambda _: reference, False,
        "qsae-bench show", Attributor(session),
    )  # fmt: skip
    verdict = judge.verdict(cell, GatedMetric("kl_divergence"))
    message = judge.message(cell, verdict)
    (kept,) = measured[cell].verdicts
    assert f"moved      {kept.attribution}" in message or not kept.attribution
    return message
