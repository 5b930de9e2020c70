"""Timings of a run: rounds, ratios within the run, and gates that start no measurement."""

from __future__ import annotations

import math
import runpy
from types import SimpleNamespace

import pytest

from builders import one_line
from paths import ROOT
from qsae_bench.errors import CannotRun
from qsae_bench.gate.threshold_file import parse_thresholds
from qsae_bench.metrics.cost import TURNS
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.results.cell_facts import TimingRecord
from qsae_bench.results.document import CellRecord
from qsae_bench.run.timed_workloads import warm_ups
from qsae_bench.run.timings import INVOCATION_ID, SIMULATED_SPEED, TimedRounds, Timings

FAST, SLOW = (1.0, 1.1, 0.9, 1.05, 0.95), (2.0, 2.2, 1.8, 2.1, 1.9)


def test_the_medians_of_rounds():
    rounds = TimedRounds((2.0, 1.0, 9.0, 2.5, 3.0), 500)
    assert rounds.median_seconds == 2.5
    assert rounds.spread_seconds == 1.0  # quartiles 2 and 3
    assert rounds.tokens_per_second == 200
    assert rounds.speeds == [250, 500, 500 / 9, 200, 500 / 3]


@pytest.mark.parametrize("bad", [(), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan), (math.inf,)])
def test_rounds_that_took_no_time_are_refused(bad):
    with pytest.raises(ValueError, match="a round must take more than 0 s"):
        TimedRounds(bad, 1)


# -- ratios within the run


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4", "rtn_int4"))
    )
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture
def timings(cells):
    def make(bounds=None, restored=None, simulated=(), hardware=""):
        document = {"schema": 1, "tiny_gemma3": bounds or {}}
        thresholds = parse_thresholds(document, "thresholds.toml")
        rounded = SimpleNamespace(quantized=SimpleNamespace(simulated=True))
        return Timings(
            SimpleNamespace(
                options=SimpleNamespace(thresholds=thresholds, strict=False), hardware=hardware, restored=restored or {},
                registry=SimpleNamespace(reference_of=lambda cell: cells["reference"]),
                record=lambda cell, key, value: costs.update({(cell.quantization.name, key): value}),
                warn=lambda cell, line: warnings.append(line), details_command="qsae-bench show .qsae/latest",
                measured={cells[name]: rounded for name in simulated},
            )
        )  # fmt: skip

    costs = make.costs = {}
    warnings = make.warnings = []
    return make


def bound(**entry):
    return entry | {"source": "measured"}


def stored(rounds):
    record = CellRecord(model="tiny_gemma3", quantization="reference", status="timed", timings=rounds)
    return SimpleNamespace(entry=SimpleNamespace(record=record))


def test_a_ratio_is_of_both_sides_of_this_run(timings, cells):
    found = timings()
    found.record_rounds(cells["reference"], "prefill", FAST, 1000)
    assert found.ratios(cells["reference"]) == {}
    assert found.ratios(cells["nf4"]) == {}
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    ratio = found.ratios(cells["nf4"])["prefill_speed_ratio"]
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low < 0.5 < ratio.high
    assert timings.costs["nf4", "prefill_tokens_per_second"] == 500


def test_every_round_is_recorded(timings, cells):
    found = timings()
    found.record_rounds(
        cells["nf4"], "decode", SLOW, 64, ["the GPU was shared: 1 other process computed on it"]
    )
    record = found.records(cells["nf4"])["decode"]
    assert (record.seconds, record.rounds, record.tokens) == (list(SLOW), 5, 64)
    assert (record.median_seconds, record.spread_seconds) == (2.0, pytest.approx(0.2))
    assert TimingRecord.model_validate_json(record.model_dump_json()) == record


def test_a_run_written_before_there_were_timings_still_reads():
    assert (
        CellRecord.model_validate({"model": "m", "quantization": "q", "status": "measured"}).timings == {}
    )


def test_nothing_is_gated_without_a_threshold(timings, cells):
    found = timings()
    assert found.failing(cells["nf4"], "prefill_speed_ratio") is None
    assert found.verdicts(cells["nf4"]) == []


@pytest.mark.parametrize(("least", "status"), [(0.3, "pass"), (0.5, "inconclusive"), (0.7, "fail")])
def test_a_gate_on_the_ratio(timings, cells, least, status):
    found = timings({"nf4": {"prefill_speed_ratio": bound(min=least)}})
    found.record_rounds(cells["reference"], "prefill", FAST, 1000)
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    failure = found.failing(cells["nf4"], "prefill_speed_ratio")
    (verdict,) = found.verdicts(cells["nf4"])
    assert verdict.status == status
    if status == "pass":
        assert failure is None
        return
    assert (failure.metric, failure.status) == ("prefill_speed_ratio", status)
    lines = failure.message.splitlines()
    assert lines[0] == f"tiny_gemma3-nf4: prefill_speed_ratio {status.upper()}"
    assert "prefill of the cell 500 tokens/s (5 rounds, quartiles 10.0% apart)" in failure.message
    assert "against prefill of its reference 1,000 tokens/s" in failure.message
    assert "--max-tokens" not in failure.message, "more tokens decide nothing here"
    assert lines[-1].endswith("-k tiny_gemma3-nf4")


def test_hardware_has_its_own_bound(timings, cells):
    bounds = {
        "nf4": {
            "prefill_speed_ratio": bound(min=0.9),
            "hardware": {"slow": {"prefill_speed_ratio": bound(min=0.1)}},
        }
    }
    for hardware, status in (("slow", "pass"), ("", "fail")):
        found = timings(bounds, hardware=hardware)
        found.record_rounds(cells["reference"], "prefill", FAST, 1000)
        found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
        found.failing(cells["nf4"], "prefill_speed_ratio")
        assert found.verdicts(cells["nf4"])[0].status == status


def test_a_reference_that_was_not_timed_is_named_and_not_timed_now(timings, cells):
    found = timings({"nf4": {"prefill_speed_ratio": bound(min=0.1)}})
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    with pytest.raises(CannotRun) as error:
        found.failing(cells["nf4"], "prefill_speed_ratio")
    assert one_line(error.value) == (
        "tiny_gemma3-nf4: prefill_speed_ratio not measured: the speed of its reference was not taken in this "
        "run; run both: pytest benchmarks -k 'prefill and (tiny_gemma3-reference or tiny_gemma3-nf4)'"
    )
    assert found.verdicts(cells["nf4"]) == []


def test_a_reference_of_before_the_resume_is_another_machine(timings, cells):
    record = rounds_of(FAST).record()
    earlier = record.model_copy(update={"invocation": "an earlier one"})
    found = timings(
        {"nf4": {"prefill_speed_ratio": bound(min=0.1)}}, {cells["reference"]: stored({"prefill": earlier})}
    )
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    with pytest.raises(CannotRun, match="its reference was timed before this run was resumed"):
        found.failing(cells["nf4"], "prefill_speed_ratio")


def test_a_reference_timed_by_another_process_of_this_invocation_counts(timings, cells):
    """As with --isolate: its part of the journal comes back with the mark that forked processes share."""
    record = rounds_of(FAST).record()
    assert record.invocation == INVOCATION_ID
    found = timings(
        {"nf4": {"prefill_speed_ratio": bound(min=0.1)}}, {cells["reference"]: stored({"prefill": record})}
    )
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    assert found.failing(cells["nf4"], "prefill_speed_ratio") is None
    assert found.ratios(cells["nf4"])["prefill_speed_ratio"].value == pytest.approx(0.5)


def rounds_of(seconds):
    return TimedRounds(tuple(seconds), 1000)


def test_timing_switched_off_is_not_measured(timings, cells):
    bounds = {
        "nf4": {"decode_speed_ratio": bound(min=0.1)},
        "reference": {"evaluation_overhead": bound(max=2.0)},
    }
    found = timings(bounds)
    for name, metric in (("nf4", "decode_speed_ratio"), ("reference", "evaluation_overhead")):
        with pytest.raises(CannotRun, match=f"{metric} not measured: timing is off"):
            found.failing(cells[name], metric)


def test_a_simulated_quantization_has_no_speed_of_its_own(timings, cells):
    found = timings({"rtn_int4": {"prefill_speed_ratio": bound(min=0.1)}}, simulated=("rtn_int4",))
    for name in ("reference", "rtn_int4"):
        found.record_rounds(cells[name], "prefill", FAST, 1000)
    failure = found.failing(cells["rtn_int4"], "prefill_speed_ratio")
    assert failure.status == "invalid" and SIMULATED_SPEED in failure.message


def test_what_disturbed_either_side_is_in_the_verdict_and_a_warning_once(timings, cells):
    found = timings({"nf4": {"prefill_speed_ratio": bound(min=0.7)}})
    hot = "the GPU was throttled: thermal slowdown in 1 of 2 readings"
    found.record_rounds(cells["reference"], "prefill", FAST, 1000, [hot])
    found.record_rounds(cells["reference"], "decode", FAST, 1000, [hot])
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    failure = found.failing(cells["nf4"], "prefill_speed_ratio")
    assert f"while prefill of its reference was timed, {hot}" in failure.message
    assert timings.warnings == [f"tiny_gemma3-reference: while prefill was timed, {hot}"]


def test_turns_of_an_evaluation(timings, cells):
    bounds = {
        "reference": {"evaluation_overhead": bound(max=1.3), "evaluation_forward_ratio": bound(min=0.8)}
    }
    found = timings(bounds)
    slow = (1.0, 2.0, 3.0, 1.0, 1.0, 4.0)  # the machine's, the same for all three
    seconds = {
        "evaluation": slow,
        "evaluation_floor": [s / 1.25 for s in slow],
        "forward": [s / 2 for s in slow],
    }
    found.record_turns(cells["reference"], seconds, 4096)
    ratios = found.ratios(cells["reference"])
    assert ratios["evaluation_overhead"].value == pytest.approx(1.25)
    assert ratios["evaluation_forward_ratio"].value == pytest.approx(0.5)
    overhead, failure = (found.failing(cells["reference"], metric) for metric in TURNS)
    assert overhead is None and failure.metric == "evaluation_forward_ratio"
    assert "forward 5,461 tokens/s" in failure.message, "4,096 in the median round of 0.75 s"
    assert [v.status for v in found.verdicts(cells["reference"])] == ["pass", "fail"]


def test_a_gate_judged_twice_is_one_verdict(timings, cells):
    found = timings({"nf4": {"prefill_speed_ratio": bound(min=0.7)}})
    for name, seconds in (("reference", FAST), ("nf4", SLOW)):
        found.record_rounds(cells[name], "prefill", seconds, 1000)
    for _ in range(2):
        found.failing(cells["nf4"], "prefill_speed_ratio")
    assert len(found.verdicts(cells["nf4"])) == 1


def test_several_gpus_are_warmed_up_as_one_is():
    """A session names them auto."""
    assert warm_ups("auto") == warm_ups("cuda") > warm_ups("cpu")


@pytest.mark.parametrize(("device", "forward", "ends"), [
    ("cuda", 0.039, pytest.skip.Exception), ("auto", 0.039, pytest.skip.Exception), ("cuda", 0.041, AssertionError),
    ("cpu", 0.039, AssertionError),
])  # fmt: skip
def test_overhead_is_not_judged_where_a_gpus_forward_is_its_launches(device, forward, ends):
    path = ROOT / "benchmarks" / "test_overhead.py"
    judge = runpy.run_path(str(path))["test_overhead"]
    timings = SimpleNamespace(
        ratios=lambda cell: {"evaluation_overhead": SimpleNamespace(value=3.85)},
        rounds_of=lambda cell, workload: TimedRounds((forward,), 4096),
    )
    session = SimpleNamespace(timings=timings, environment={"device": device})
    with pytest.raises(ends, match="3.85"):
        judge(session, SimpleNamespace(is_reference=True), lambda: None, lambda: None)
