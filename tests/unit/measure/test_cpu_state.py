"""Shared or throttled processors, from counters in folders and from a process beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.machine import usable_processors
from qsae_bench.measure import cpu_state
from qsae_bench.measure.cpu_state import CpuState, cpu_flags, parse_cgroup, read_cpu
from qsae_bench.measure.device_state import watch

STAT = """\
cpu  300 10 50 9000 20 3 2 40 7 0
cpu0 100 5 20 4500 10 1 1 30 7 0
cpu1 200 5 30 4500 10 2 1 10 0 0
intr 12345 0 0
ctxt 999
"""


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """``proc(text)``: what /proc/stat says to psutil, of two processors that this process may run on."""
    monkeypatch.setattr(cpu_state, "usable_processors", lambda: frozenset({0, 1}))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    (tmp_path / "proc").mkdir()

    def write(text):
        (tmp_path / "proc" / "stat").write_text(text)

    return write


def test_only_the_processors_it_may_run_on_are_read(proc, monkeypatch, tmp_path):
    def read(*processors):
        monkeypatch.setattr(cpu_state, "usable_processors", lambda: frozenset(processors))
        state = read_cpu(tmp_path)
        return state.busy_seconds, state.stolen_seconds

    proc(STAT)
    # 300 + 10 + 50 + 3 + 2 hundredths busy, 40 stolen
    assert read(0, 1) == (pytest.approx(3.65), pytest.approx(0.4))
    assert read(1) == (pytest.approx(2.38), pytest.approx(0.1))
    assert read(5) == (None, 0.0)
    proc("cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    assert read(0) == (None, 0.0), "a sandbox that counts nothing"


@given(st.text())
def test_no_text_breaks_the_parser(text):
    assert parse_cgroup(text) >= 0


def state(**changes):
    nothing = CpuState(
        busy_seconds=100.0,
        stolen_seconds=0.0,
        own_seconds=50.0,
        throttled=0,
        capped_seconds=0.0,
        at=0.0,
        processors=2,
    )
    return replace(nothing, **changes)


def test_a_machine_of_ones_own_is_nothing_to_speak_of():
    """Ten seconds on two processors, both busy with this process."""
    after = state(at=10.0, busy_seconds=120.0, own_seconds=70.0)
    assert cpu_flags(state(), after) == []


def test_others_are_what_is_busy_beside_this_process():
    after = state(at=10.0, busy_seconds=118.0, own_seconds=60.0)
    assert cpu_flags(state(), after) == ["the CPU was shared: other processes took 40% of its time"]
    assert cpu_flags(state(), replace(after, own_seconds=65.5)) == [], "12% is what a desktop does"
    assert cpu_flags(state(busy_seconds=None), replace(after, busy_seconds=None)) == []


def test_a_moment_is_too_short_for_counters_of_hundredths():
    """0.1 s on two processors are 20 ticks: 8 of them may be no more than where the readings fell."""
    after = state(at=0.1, busy_seconds=100.2, own_seconds=50.13)
    assert cpu_flags(state(), after) == []
    assert cpu_flags(state(), replace(after, own_seconds=50.05)) != []


def test_stolen_throttled_and_capped_are_told_apart():
    after = state(at=10.0, stolen_seconds=5.0, throttled=3, capped_seconds=4.0)
    assert cpu_flags(state(), after) == [
        "the CPU was shared: other machines took 25% of its time",
        "the CPU was throttled for its heat 3 times in 10.0 s",
        "the CPU was throttled: its quota held it back for 4.0 s in 10.0 s",
    ]


def test_counters_are_read_from_their_files(proc, tmp_path):
    proc(STAT)
    for cpu, count in ((0, 4), (1, 5)):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
        (folder / "package_throttle_count").write_text("1\n")
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cpu.stat").write_text("usage_usec 99\nnr_throttled 7\nthrottled_usec 2500000\n")
    found = read_cpu(tmp_path)
    assert (found.busy_seconds, found.stolen_seconds) == (pytest.approx(3.65), pytest.approx(0.4))
    assert (found.throttled, found.capped_seconds, found.processors) == (11, 2.5, 2)


def test_where_nothing_can_be_read_nothing_is_reported(proc, tmp_path):
    before = read_cpu(tmp_path)
    assert before.busy_seconds is None
    assert cpu_flags(before, replace(read_cpu(tmp_path), at=before.at + 10)) == []


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="no /proc/stat: not Linux")
@pytest.mark.alone
def test_a_process_beside_this_one_is_seen():
    """One that keeps every processor busy, for as long as the block runs."""
    spin = (
        f"import os\nfor _ in range({len(usable_processors())} - 1):\n os.fork() or None\nwhile True: pass"
    )
    with watch("cpu") as seen:
        beside = subprocess.Popen([sys.executable, "-S", "-c", spin], start_new_session=True)
        time.sleep(2)
        after = time.perf_counter()
    os.killpg(beside.pid, 9)
    beside.wait()
    assert after and any("other processes took" in flag for flag in seen.flags)
