"""Throttled or shared? From readings that are made up, and from a driver that is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pynvml
import pytest

from fake_nvml import OTHER_UUID, UUID, FakeDriver, FakeGpu, hung_driver, no_driver
from qsae_bench import gpus
from qsae_bench.gpus import GpuProcess, GpuSample
from qsae_bench.measure import device_state
from qsae_bench.measure.device_state import (
    gpu_flags,
    other_processes,
    related_processes,
    watch,
)


def sample(**changes):
    return replace(GpuSample(UUID, 1980, 1980, 0, False), **changes)


# -- what is reported of a GPU


def test_a_gpu_at_its_clocks_alone_is_nothing_to_speak_of():
    assert gpu_flags([sample()], [GpuProcess(UUID, 7)], {7}, {UUID}) == []
    assert gpu_flags([], [], {7}, {UUID}) == []


def test_idle_and_set_clocks_are_no_throttling():
    idle, locked = sample(sm_mhz=210, reasons=0x1), sample(sm_mhz=1200, reasons=0x2)
    assert gpu_flags([idle, locked], [], {7}, {UUID}) == []


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x8, "hardware slowdown"),
        (0x20, "thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "power brake"),
    ],
)
def test_a_slowdown_is_named_with_its_clock(bit, name):
    found = gpu_flags([sample(), sample(sm_mhz=990, reasons=bit | 4)], [], {7}, {UUID})
    assert found[0] == (
        f"the GPU was throttled: {name} in 1 of 2 readings, SM clock down to 990 of 1,980 MHz"
    )


def test_the_power_limit_counts_only_where_it_costs_clocks():
    assert gpu_flags([sample(sm_mhz=1800, reasons=4)], [], {7}, {UUID}) == []
    (found,) = gpu_flags([sample(sm_mhz=1410, reasons=4)], [], {7}, {UUID})
    assert (
        found
        == "the GPU was throttled: power limit in 1 of 1 readings, SM clock down to 1,410 of 1,980 MHz"
    )


def test_clocks_that_are_not_known_say_nothing_of_them():
    (found,) = gpu_flags([sample(sm_mhz=None, reasons=8)], [], {7}, {UUID})
    assert found == "the GPU was throttled: hardware slowdown in 1 of 1 readings"
    assert gpu_flags([sample(sm_mhz=None, reasons=4), sample(reasons=None)], [], {7}, {UUID}) == []


def test_another_gpu_is_not_ours():
    hot = sample(uuid=OTHER_UUID, reasons=0x40)
    assert (
        gpu_flags([hot, sample()], [GpuProcess(OTHER_UUID, 99), GpuProcess(OTHER_UUID, 98)], {7}, {UUID})
        == []
    )
    assert len(gpu_flags([hot, sample()], [], {7}, set())) == 1, "which is ours is not known"


def test_a_slice_of_a_gpu_is_shared():
    assert gpu_flags([sample(mig=True)], [], {7}, {UUID})[0].startswith("the GPU was shared: MIG is on")


@pytest.mark.parametrize(
    ("listed", "others"),
    [
        ([], 0),
        ([(UUID, 7)], 0),
        ([(UUID, 7), (UUID, 7), (UUID, 8)], 0),  # the process and its child, in both readings
        ([(UUID, 7), (UUID, 99)], 1),
        ([(UUID, 7), (UUID, 99), (UUID, 98), (UUID, 99)], 2),
        ([(UUID, 4242)], 0),  # ids of the host, seen from a container: that one is this process
        ([(UUID, 4242), (UUID, 4243)], 1),
        ([(UUID, 7), (OTHER_UUID, 99)], 0),
    ],
)
def test_other_processes(listed, others):
    processes = [GpuProcess(*one) for one in listed]
    assert other_processes(processes, {7, 8, 1}, {UUID}) == others


# -- watching a GPU


@pytest.fixture(autouse=True)
def one_gpu_is_ours(monkeypatch):
    monkeypatch.setattr(device_state, "visible_gpus", lambda: frozenset({UUID}))
    monkeypatch.setattr(gpus, "SAMPLE_SECONDS", 0.01)


def samplers():
    return [thread for thread in threading.enumerate() if "_run" in thread.name]


def test_throttling_while_the_work_ran_is_seen(monkeypatch):
    """Before and after it the GPU idles, as the driver asked then would say."""
    gpu = FakeGpu(readings=[(345, 1), (705, 0x20), (345, 1)], pids=(os.getpid(), 999_999))
    driver = FakeDriver(monkeypatch, gpu)
    with watch("cuda") as seen:
        time.sleep(0.5)
    throttled, shared = seen.flags
    assert throttled.startswith("the GPU was throttled: thermal slowdown in 1 of ")
    assert throttled.endswith("SM clock down to 705 of 1,980 MHz")
    assert shared == "the GPU was shared: 1 other process computed on it"
    assert driver.open_sessions == 0 and samplers() == []


def test_a_work_shorter_than_the_interval_is_sampled_once(monkeypatch):
    monkeypatch.setattr(gpus, "SAMPLE_SECONDS", 60)
    FakeDriver(monkeypatch, FakeGpu(readings=[(705, 8)]))
    with watch("cuda") as seen:
        pass
    assert seen.flags == [
        "the GPU was throttled: hardware slowdown in 1 of 1 readings, SM clock down to 705 of 1,980 MHz"
    ]


def test_no_driver_reports_nothing(monkeypatch):
    no_driver(monkeypatch)
    with watch("cuda") as seen:
        worked = True
    assert worked and seen.flags == []


def test_a_gpu_lost_while_it_is_watched_is_no_error(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(readings=[(705, 8)]))
    with watch("cuda") as seen:

        def lost(gpu):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lost)
        time.sleep(0.1)
    assert "hardware slowdown" in seen.flags[0]


def test_a_driver_that_hangs_is_left(monkeypatch):
    released = threading.Event()
    hung_driver(monkeypatch, released)
    monkeypatch.setattr(gpus, "DRIVER_TIMEOUT_SECONDS", 0.1)
    started = time.monotonic()
    with watch("cuda") as seen:
        pass
    assert seen.flags == []
    assert time.monotonic() - started < 5
    released.set()


def test_a_work_that_raises_ends_the_sampling_too(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu())
    with pytest.raises(RuntimeError, match="out of memory"), watch("cuda"):
        raise RuntimeError("out of memory")
    assert samplers() == []


# -- which processes are this one's


def test_relatives_are_above_and_below_but_not_beside():
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    # a shell's child is a grandchild of ours; one that is started anew by init is not ours
    child = subprocess.Popen(["/bin/sh", "-c", '"$@" & echo $!; wait', "sh", *command], stdout=subprocess.PIPE, text=True)  # fmt: skip
    grandchild = int(child.stdout.readline())
    try:
        found = related_processes()
    finally:
        os.kill(grandchild, 9)
        child.communicate()
    assert {os.getpid(), os.getppid(), child.pid, grandchild} <= found
