"""The clock, against a GPU that isn't there."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from qsae_bench.app import plugin
from qsae_bench.measure import clock


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
    clock.use("cpu")


def test_the_gpu_clock_counts_what_is_queued_and_not_what_the_host_did(gpu):
    read = clock.GpuClock()
    start = read()
    gpu.work(12.5)
    time.sleep(0.05)  # the host's own affair
    assert read() - start == pytest.approx(0.0125, abs=1e-9)


def test_the_gpu_clock_is_exact_after_hours(gpu):
    read = clock.GpuClock()
    read()
    for _ in range(3):
        gpu.work(3_600_000.0)
        start = read()
        gpu.work(0.125)
        assert read() - start == pytest.approx(0.000125, rel=1e-6)


def test_only_gpus_that_hold_something_are_waited_for(gpu):
    """Waiting for an unused one makes a context on it: half a gigabyte."""
    clock.synchronize("cuda:0")
    assert gpu.waited_for == [0]
    gpu.used = (0, 1)
    clock.synchronize("cuda")
    assert gpu.waited_for == [0, 0, 1]
    clock.synchronize("cpu")
    assert gpu.waited_for == [0, 0, 1]


def test_the_timer_is_the_clock_of_the_device_in_use(gpu):
    clock.use("cuda")
    start = clock.now()
    gpu.work(1000)
    assert clock.now() - start == pytest.approx(1.0)
    clock.use("cpu")
    assert clock.now() == pytest.approx(time.perf_counter(), abs=0.1)


@pytest.mark.benchmark(timer=clock.now)
@pytest.mark.alone
def test_pytest_benchmark_times_with_it(gpu, benchmark):
    """As in the benchmarks: the timer is named at collection, the device chosen afterwards."""
    clock.use("cuda")
    benchmark.pedantic(lambda: gpu.work(250), rounds=3, warmup_rounds=1)
    if benchmark.stats is not None:
        assert benchmark.stats.stats.data == pytest.approx([0.25, 0.25, 0.25])


def test_rounds_that_were_timed_elsewhere_are_recorded_as_they_are():
    class Benchmark:
        """Reads the timer around each round, as pytest-benchmark does."""

        def pedantic(self, target, rounds):
            self.seconds = []
            for _ in range(rounds):
                start = clock.now()
                target()
                self.seconds.append(clock.now() - start)

    benchmark = Benchmark()
    clock.report_rounds(benchmark, (0.5, 0.25))
    assert benchmark.seconds == [0.5, 0.25]
    assert clock.now() == pytest.approx(time.perf_counter(), abs=0.1)


def test_what_the_marker_times_has_the_timer_and_its_own_options():
    added = []

    class Item:
        def get_closest_marker(self, name):
            known = {"times": pytest.mark.times("load"), "benchmark": pytest.mark.benchmark(min_rounds=3)}
            return known[name].mark

        def add_marker(self, marker, append):
            added.append((marker.kwargs, append))

    plugin.BenchmarkPlugin(SimpleNamespace(settings=None), None).pytest_itemcollected(Item())
    assert added == [({"min_rounds": 3, "timer": clock.now}, False)]
