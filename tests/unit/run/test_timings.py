"""Timings: the clock of a GPU that isn't there, ratios within a run, and gates that start no measurement."""

from __future__ import annotations

import json
import os
import runpy
import time
from types import SimpleNamespace

import pytest

import warm
from builders import one_line
from paths import ROOT
from qsae_bench.app import plugin
from qsae_bench.errors import CannotRun
from qsae_bench.gate.thresholds import parse_thresholds
from qsae_bench.measure import workloads as speed
from qsae_bench.metrics import GROUPS, METRICS
from qsae_bench.metrics.cost import TIMING_GATES
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.results.document import CellRecord, TimingRecord
from qsae_bench.run.timed_works import warm_ups
from qsae_bench.run.timings import RATES, RATIOS, SIMULATED, TURNS, Timings
from qsae_bench.stats.speed_ratio import INVOCATION, TimedRounds

FAST, SLOW = (1.0, 1.1, 0.9, 1.05, 0.95), (2.0, 2.2, 1.8, 2.1, 1.9)


# -- the clock


class FakeGpu:
    """A device whose work lies in a queue until it is waited for, with a clock of its own."""

    def __init__(self, index_used=(0,), count=2):
        self.clock_ms = 3_600_000.0  # up for an hour
        self.queued_ms = 0.0
        self.used, self.count = index_used, count
        self.waited_for = []

    def work(self, ms):
        self.queued_ms += ms

    def synchronize(self, index=None):
        self.waited_for.append(index)
        self.clock_ms += self.queued_ms
        self.queued_ms = 0.0

    def event_class(gpu):
        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing, "an event without timing has no time"
                self.at = None

            def record(self):
                self.at = gpu.clock_ms + gpu.queued_ms  # when all before it is done

            def synchronize(self):
                gpu.synchronize("event")

            def elapsed_time(self, other):
                import numpy as np

                assert gpu.clock_ms >= other.at, "not waited for: CUDA raises here"
                return float(np.float32(other.at - self.at))

        return Event


@pytest.fixture
def gpu(monkeypatch):
    import torch

    fake = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", fake.event_class())
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: fake.count)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 1000 if index in fake.used else 0)
    yield fake
    speed.use("cpu")


def test_the_gpu_clock_counts_what_is_queued_and_not_what_the_host_did(gpu):
    clock = speed.GpuClock()
    start = clock()
    gpu.work(12.5)
    time.sleep(0.05)  # the host's own affair
    assert clock() - start == pytest.approx(0.0125, abs=1e-9)


def test_the_gpu_clock_is_exact_after_hours(gpu):
    clock = speed.GpuClock()
    clock()
    for _ in range(3):
        gpu.work(3_600_000.0)
        start = clock()
        gpu.work(0.125)
        assert clock() - start == pytest.approx(0.000125, rel=1e-6)


def test_only_gpus_that_hold_something_are_waited_for(gpu):
    """Waiting for an unused one makes a context on it: half a gigabyte."""
    speed.synchronize("cuda:0")
    assert gpu.waited_for == [0]
    gpu.used = (0, 1)
    speed.synchronize("cuda")
    assert gpu.waited_for == [0, 0, 1]
    speed.synchronize("cpu")
    assert gpu.waited_for == [0, 0, 1]


def test_the_timer_is_the_clock_of_the_device_in_use(gpu):
    speed.use("cuda")
    start = speed.now()
    gpu.work(1000)
    assert speed.now() - start == pytest.approx(1.0)
    speed.use("cpu")
    assert speed.clock("cpu") is time.perf_counter
    assert speed.now() == pytest.approx(time.perf_counter(), abs=0.1)


@pytest.mark.benchmark(timer=speed.now)
@pytest.mark.alone
def test_pytest_benchmark_times_with_it(gpu, benchmark):
    """As in the benchmarks: the timer is named at collection, the device chosen afterwards."""
    speed.use("cuda")
    benchmark.pedantic(lambda: gpu.work(250), rounds=3, warmup_rounds=1)
    if benchmark.stats is not None:
        assert benchmark.stats.stats.data == pytest.approx([0.25, 0.25, 0.25])


def test_what_the_marker_times_has_the_timer_and_its_own_options():
    added = []

    class Item:
        def get_closest_marker(self, name):
            known = {"times": pytest.mark.times("load"), "benchmark": pytest.mark.benchmark(min_rounds=3)}
            return known[name].mark

        def add_marker(self, marker, append):
            added.append((marker.kwargs, append))

    plugin.pytest_itemcollected(Item())
    assert added == [({"min_rounds": 3, "timer": speed.now}, False)]


# -- ratios within the run


@pytest.fixture(scope="module")
def cells():
    chosen = load_registry().select(
        Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4", "rtn_int4"))
    )
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture
def speeds(cells):
    def make(bounds=None, restored=None, simulated=(), hardware=""):
        document = {"schema": 1, "tiny_gemma3": bounds or {}}
        thresholds = parse_thresholds(document, "thresholds.toml")
        made = Timings(
            thresholds,
            lambda cell: cells["reference"],
            restored or {},
            lambda cell, key, value: costs.update({(cell.quantization.name, key): value}),
            lambda cell, line: said.append(line),
            {cells[name]: SimpleNamespace(quantized=SimpleNamespace(simulated=True)) for name in simulated},
            lambda: hardware,
            "qsae-bench show .qsae/latest",
        )
        return made

    costs = make.costs = {}
    said = make.said = []
    return make


def bound(**entry):
    return entry | {"source": "measured"}


def kept(timings):
    record = CellRecord(model="tiny_gemma3", quantization="reference", status="timed", timings=timings)
    return SimpleNamespace(entry=SimpleNamespace(record=record))


def test_a_ratio_is_of_both_sides_of_this_run(speeds, cells):
    found = speeds()
    found.record_rounds(cells["reference"], "prefill", FAST, 1000)
    assert found.ratios(cells["reference"]) == {}
    assert found.ratios(cells["nf4"]) == {}
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    ratio = found.ratios(cells["nf4"])["prefill_speed_ratio"]
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low < 0.5 < ratio.high
    assert speeds.costs["nf4", "prefill_tokens_per_second"] == 500


def test_every_round_is_kept(speeds, cells):
    found = speeds()
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


def test_nothing_is_gated_without_a_threshold(speeds, cells):
    found = speeds()
    assert found.failing(cells["nf4"], ("prefill_speed_ratio",)) == []
    assert found.verdicts(cells["nf4"]) == []


@pytest.mark.parametrize(("least", "status"), [(0.3, "pass"), (0.5, "inconclusive"), (0.7, "fail")])
def test_a_gate_on_the_ratio(speeds, cells, least, status):
    found = speeds({"nf4": {"prefill_speed_ratio": bound(min=least)}})
    found.record_rounds(cells["reference"], "prefill", FAST, 1000)
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    failures = found.failing(cells["nf4"], ("prefill_speed_ratio", "decode_speed_ratio"))
    (verdict,) = found.verdicts(cells["nf4"])
    assert verdict.status == status
    if status == "pass":
        assert failures == []
        return
    (failure,) = failures
    assert (failure.metric, failure.status) == ("prefill_speed_ratio", status)
    lines = failure.message.splitlines()
    assert lines[0] == f"tiny_gemma3-nf4: prefill_speed_ratio {status.upper()}"
    assert "prefill of the cell 500 tokens/s (5 rounds, quartiles 10.0% apart)" in failure.message
    assert "against prefill of its reference 1,000 tokens/s" in failure.message
    assert "--max-tokens" not in failure.message, "more tokens decide nothing here"
    assert lines[-1].endswith("-k tiny_gemma3-nf4")


def test_hardware_has_its_own_bound(speeds, cells):
    bounds = {
        "nf4": {
            "prefill_speed_ratio": bound(min=0.9),
            "hardware": {"slow": {"prefill_speed_ratio": bound(min=0.1)}},
        }
    }
    for hardware, status in (("slow", "pass"), ("", "fail")):
        found = speeds(bounds, hardware=hardware)
        found.record_rounds(cells["reference"], "prefill", FAST, 1000)
        found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
        found.failing(cells["nf4"], ("prefill_speed_ratio",))
        assert found.verdicts(cells["nf4"])[0].status == status


def test_a_reference_that_was_not_timed_is_said_and_not_timed_now(speeds, cells):
    found = speeds({"nf4": {"prefill_speed_ratio": bound(min=0.1)}})
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    with pytest.raises(CannotRun) as error:
        found.failing(cells["nf4"], ("prefill_speed_ratio",))
    assert one_line(error.value) == (
        "tiny_gemma3-nf4: prefill_speed_ratio not measured: the speed of its reference was not taken in this "
        "run; run both: pytest benchmarks -k 'prefill and (tiny_gemma3-reference or tiny_gemma3-nf4)'"
    )
    assert found.verdicts(cells["nf4"]) == []


def test_a_reference_of_before_the_resume_is_another_machine(speeds, cells):
    record = TimingRecord.of(rounds_of(FAST))
    earlier = record.model_copy(update={"invocation": "an earlier one"})
    found = speeds(
        {"nf4": {"prefill_speed_ratio": bound(min=0.1)}}, {cells["reference"]: kept({"prefill": earlier})}
    )
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    with pytest.raises(CannotRun, match="its reference was timed before this run was resumed"):
        found.failing(cells["nf4"], ("prefill_speed_ratio",))


def test_a_reference_timed_by_another_process_of_this_invocation_counts(speeds, cells):
    """As with --isolate: its part of the journal comes back with the mark that forked processes share."""
    record = TimingRecord.of(rounds_of(FAST))
    assert record.invocation == INVOCATION
    found = speeds(
        {"nf4": {"prefill_speed_ratio": bound(min=0.1)}}, {cells["reference"]: kept({"prefill": record})}
    )
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    assert found.failing(cells["nf4"], ("prefill_speed_ratio",)) == []
    assert found.ratios(cells["nf4"])["prefill_speed_ratio"].value == pytest.approx(0.5)


def rounds_of(seconds):
    return TimedRounds(tuple(seconds), 1000)


def test_timing_switched_off_is_not_measured(speeds, cells):
    bounds = {
        "nf4": {"decode_speed_ratio": bound(min=0.1)},
        "reference": {"evaluation_overhead": bound(max=2.0)},
    }
    found = speeds(bounds)
    for name, metric in (("nf4", "decode_speed_ratio"), ("reference", "evaluation_overhead")):
        with pytest.raises(CannotRun, match=f"{metric} not measured: timing is off"):
            found.failing(cells[name], (metric,))


def test_a_simulated_recipe_has_no_speed_of_its_own(speeds, cells):
    found = speeds({"rtn_int4": {"prefill_speed_ratio": bound(min=0.1)}}, simulated=("rtn_int4",))
    for name in ("reference", "rtn_int4"):
        found.record_rounds(cells[name], "prefill", FAST, 1000)
    (failure,) = found.failing(cells["rtn_int4"], ("prefill_speed_ratio",))
    assert failure.status == "invalid" and SIMULATED in failure.message


def test_what_disturbed_either_side_is_in_the_verdict_and_said_once(speeds, cells):
    found = speeds({"nf4": {"prefill_speed_ratio": bound(min=0.7)}})
    hot = "the GPU was throttled: thermal slowdown in 1 of 2 readings"
    found.record_rounds(cells["reference"], "prefill", FAST, 1000, [hot])
    found.record_rounds(cells["reference"], "decode", FAST, 1000, [hot])
    found.record_rounds(cells["nf4"], "prefill", SLOW, 1000)
    (failure,) = found.failing(cells["nf4"], ("prefill_speed_ratio",))
    assert f"while prefill of its reference was timed, {hot}" in failure.message
    assert speeds.said == [f"tiny_gemma3-reference: while prefill was timed, {hot}"]


def test_turns_of_an_evaluation(speeds, cells):
    bounds = {
        "reference": {"evaluation_overhead": bound(max=1.3), "evaluation_forward_ratio": bound(min=0.8)}
    }
    found = speeds(bounds)
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
    (failure,) = found.failing(cells["reference"], tuple(TURNS))
    assert failure.metric == "evaluation_forward_ratio"
    assert "forward 5,461 tokens/s" in failure.message, "4,096 in the median round of 0.75 s"
    assert [v.status for v in found.verdicts(cells["reference"])] == ["pass", "fail"]


def test_a_gate_judged_twice_is_one_verdict(speeds, cells):
    found = speeds({"nf4": {"prefill_speed_ratio": bound(min=0.7)}})
    for name, seconds in (("reference", FAST), ("nf4", SLOW)):
        found.record_rounds(cells[name], "prefill", seconds, 1000)
    for _ in range(2):
        found.failing(cells["nf4"], ("prefill_speed_ratio",))
    assert len(found.verdicts(cells["nf4"])) == 1


def test_the_vocabulary():
    assert set(RATIOS) | set(TURNS) == TIMING_GATES
    assert set(RATIOS.values()) <= set(RATES)
    assert GROUPS["cost"] > TIMING_GATES
    assert not any(METRICS[key].gateable for key in RATES.values()), "absolute times are another night's"
    assert not any(METRICS[key].gateable for key in GROUPS["cost"] - TIMING_GATES)


# -- on the command line


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """``timed(keyword, bounds)`` -> (exit status, output, the run document)."""

    def run(keyword, bounds, *options):
        folder = tmp_path_factory.mktemp("speed")
        file = folder / "thresholds.toml"
        file.write_text(f"schema = 1\n{bounds}")
        arguments = [
            "-q", "-p", "no:cacheprovider", "-k", keyword, "--models", "tiny_gemma3", "--tokens", "2032", "--qsae-dir", str(folder / "q"), "--thresholds", str(file), *options,
        ]  # fmt: skip
        done = warm.run(arguments, os.environ | {"COLUMNS": "300"}, timeout=400)
        said = done.stdout + done.stderr
        found = sorted((folder / "q" / "runs").glob("*/run.json"))
        assert found, said
        return done.returncode, said, json.loads(found[-1].read_text())

    return run


@pytest.mark.large
def test_a_run_of_speeds_alone_is_judged_and_measures_nothing_else(timed):
    bounds = """
    [tiny_gemma3.nf4]
    prefill_speed_ratio = { min = 1e6, source = "no recipe is a million times as fast" }
    decode_speed_ratio = { min = 1e-6, source = "nor so slow" }
    """
    status, said, document = timed("(prefill or decode) and (reference or nf4)", bounds)
    assert status == 1, said
    assert "tiny_gemma3-nf4: prefill_speed_ratio FAIL" in said
    reference, nf4 = document["cells"]
    assert (reference["status"], nf4["status"]) == ("timed", "timed")
    assert "perplexity" not in nf4["metrics"]
    assert {v["metric"]: v["status"] for v in nf4["verdicts"]} == {
        "prefill_speed_ratio": "fail", "decode_speed_ratio": "pass",
    }  # fmt: skip
    for work in ("prefill", "decode"):
        ours, other = nf4["timings"][work], reference["timings"][work]
        assert ours["rounds"] == len(ours["seconds"]) == 5
        value = nf4["metrics"][f"{work}_speed_ratio"]
        assert value["value"] == pytest.approx(other["median_seconds"] / ours["median_seconds"])
        assert value["low"] <= value["value"] <= value["high"]


@pytest.mark.large
def test_a_cell_alone_has_no_ratio_and_says_what_to_run(timed):
    bounds = '[tiny_gemma3.nf4]\nprefill_speed_ratio = { min = 0.1, source = "s" }\n'
    status, said, document = timed("prefill and nf4", bounds, "-rs")
    assert status == 0, said
    assert "prefill_speed_ratio not measured: the speed of its reference was not taken in this run" in said
    (nf4,) = document["cells"]
    assert nf4["verdicts"] == [] and nf4["metrics"]["prefill_tokens_per_second"]["value"] > 0
    assert "prefill_speed_ratio" not in nf4["metrics"]


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
    speeds = SimpleNamespace(
        ratios=lambda cell: {"evaluation_overhead": SimpleNamespace(value=3.85)},
        timing=lambda cell, work: TimedRounds((forward,), 4096),
    )
    session = SimpleNamespace(speeds=speeds, environment={"device": device})
    with pytest.raises(ends, match="3.85"):
        judge(session, SimpleNamespace(is_reference=True), lambda: None, lambda *metrics: None)
