"""Throttled or shared? From captured text, from a made-up nvidia-smi on PATH, from counters in folders."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.measure import cpu_state, device_state
from qsae_bench.measure.cpu_state import CpuState, cpu_flags, parse_cgroup, parse_stat, read_cpu
from qsae_bench.measure.device_state import (
    GpuSample,
    gpu_flags,
    other_processes,
    parse_apps,
    parse_samples,
    relatives,
    watch,
)

UUID, OTHER = "GPU-9f4c2d1e-0000-1111-2222-333344445555", "GPU-11111111-0000-1111-2222-333344445555"
TICKS = 100

# what nvidia-smi writes for --format=csv,noheader,nounits: brackets where a card doesn't have the field,
# and sentences where a field or the driver is missing
BUSY = f"{UUID}, 1980, 1980, 0x0000000000000000, Disabled\n"
SAMPLES = f"""\
{UUID}, 345, 1980, 0x0000000000000001, Disabled
{UUID}, 1980, 1980, 0x0000000000000000, Disabled
{OTHER}, 210, 1980, 0x0000000000000001, [N/A]
{UUID}, 1410, 1980, 0x0000000000000004, Disabled
{UUID}, 990, 1980, 0x0000000000000068, Disabled
"""


def sample(**changes):
    return replace(GpuSample(UUID, 1980, 1980, 0, False), **changes)


# -- text of nvidia-smi


def test_samples_are_read():
    first, *_, last = parse_samples(SAMPLES)
    assert first == GpuSample(UUID, 345, 1980, 1, False)
    assert last == GpuSample(UUID, 990, 1980, 0x68, False)
    assert parse_samples(f"{UUID}, [N/A], [Unknown Error], [N/A], Enabled") == [
        GpuSample(UUID, None, None, None, True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "\n\n", "No devices were found\n", "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error\n",
        'Field "clocks_event_reasons.active" is not a valid field to query.\n', f"{UUID}, 1980, 19",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_skipped(text):
    assert parse_samples(text) == []
    assert parse_apps(text) == []


@given(st.text())
def test_no_text_breaks_the_parsers(text):
    assert isinstance(parse_samples(text), list) and isinstance(parse_apps(text), list)
    assert parse_stat(text, {0, 1}, TICKS) is None or parse_stat(text, {0, 1}, TICKS)
    assert parse_cgroup(text) >= 0


def test_apps_are_read():
    text = f"{UUID}, 4242\n{OTHER}, 17\n{UUID}, [N/A]\n{UUID}, {'9' * 5000}\n"
    assert parse_apps(text) == [(UUID, 4242), (OTHER, 17)]


# -- what is said of a GPU


def test_a_gpu_at_its_clocks_alone_is_nothing_to_speak_of():
    assert gpu_flags(parse_samples(BUSY), [(UUID, 7)], {7}, {UUID}) == []
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
    hot = sample(uuid=OTHER, reasons=0x40)
    assert gpu_flags([hot, sample()], [(OTHER, 99), (OTHER, 98)], {7}, {UUID}) == []
    assert len(gpu_flags([hot, sample()], [], {7}, set())) == 1, "which is ours is not known"


def test_a_slice_of_a_gpu_is_shared():
    assert gpu_flags([sample(mig=True)], [], {7}, {UUID})[0].startswith("the GPU was shared: MIG is on")


@pytest.mark.parametrize(
    ("apps", "others"),
    [
        ([], 0),
        ([(UUID, 7)], 0),
        ([(UUID, 7), (UUID, 7), (UUID, 8)], 0),  # the process and its child, in both readings
        ([(UUID, 7), (UUID, 99)], 1),
        ([(UUID, 7), (UUID, 99), (UUID, 98), (UUID, 99)], 2),
        ([(UUID, 4242)], 0),  # ids of the host, seen from a container: that one is this process
        ([(UUID, 4242), (UUID, 4243)], 1),
        ([(UUID, 7), (OTHER, 99)], 0),
    ],
)
def test_other_processes(apps, others):
    assert other_processes(apps, {7, 8, 1}, {UUID}) == others


# -- an nvidia-smi on PATH


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """``smi(body)`` puts a program of that name on PATH; ``body`` is Python that sees ``query``."""

    def make(body):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        head = "import os, signal, sys, time\nquery = ' '.join(sys.argv[1:])\nloop = '--loop-ms=250' in query\n"
        program.write_text(f"#!{sys.executable} -S\n{head}{textwrap.dedent(body)}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.setattr(device_state, "visible_gpus", lambda: frozenset({UUID}))
    return make


def running():
    """Processes of this one that still are."""
    return [line for line in subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout.splitlines() if "nvidia-smi" in line]  # fmt: skip


def test_throttling_while_the_work_ran_is_seen(smi):
    """Before and after it the GPU idles, as nvidia-smi asked then would say."""
    smi(
        f"""
        if "compute-apps" in query:
            print("{UUID}, {os.getpid()}\\n{UUID}, 999999")
        elif loop:
            print("{UUID}, 345, 1980, 0x0000000000000001, Disabled", flush=True)
            time.sleep(0.2)
            print("{UUID}, 705, 1980, 0x0000000000000020, Disabled", flush=True)
            time.sleep(60)
        else:
            print("{UUID}, 345, 1980, 0x0000000000000001, Disabled")
        """
    )
    with watch("cuda") as seen:
        time.sleep(1)
    assert seen.flags == [
        "the GPU was throttled: thermal slowdown in 1 of 2 readings, SM clock down to 705 of 1,980 MHz",
        "the GPU was shared: 1 other process computed on it",
    ]
    assert running() == []


def test_the_older_name_of_the_field_is_tried(smi):
    smi(
        f"""
        if "clocks_event_reasons" in query:
            print('Field "clocks_event_reasons.active" is not a valid field to query.')
            sys.exit(2)
        if "compute-apps" not in query:
            print("{UUID}, 705, 1980, 0x0000000000000008, Disabled", flush=True)
            time.sleep(60 * loop)
        """
    )
    with watch("cuda") as seen:
        pass
    assert seen.flags == [
        "the GPU was throttled: hardware slowdown in 1 of 1 readings, SM clock down to 705 of 1,980 MHz"
    ]


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(9)",
        "print('No devices were found'); sys.exit(6)",
        "print('Unknown Error')",
        "os.write(1, bytes(range(128, 256)))",
        f"print('{UUID}, 1, 2, 0x8, Disabled', flush=True)\nif loop: os.kill(os.getpid(), signal.SIGSEGV)\nif 'apps' in query: sys.exit(3)",
    ],
)
def test_an_nvidia_smi_that_fails_is_no_error(smi, body):
    smi(body)
    with watch("cuda") as seen:
        worked = True
    assert worked and isinstance(seen.flags, list)


def test_no_nvidia_smi_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_state, "visible_gpus", lambda: frozenset({UUID}))
    with watch("cuda") as seen:
        pass
    assert seen.flags == []


def test_one_that_hangs_and_ignores_its_end_is_left(smi, monkeypatch):
    monkeypatch.setattr(device_state, "TIMEOUT_SECONDS", 0.5)
    smi("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    started = time.monotonic()
    with watch("cuda") as seen:
        pass
    assert seen.flags == []
    assert time.monotonic() - started < 15
    smi(
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("{UUID}, 705, 1980, 0x8, Disabled", flush=True)
        time.sleep(60 * loop)
        """
    )
    with watch("cuda") as seen:
        pass
    assert "hardware slowdown" in seen.flags[0]
    assert running() == []


def test_a_work_that_raises_ends_the_sampling_too(smi):
    smi(f'print("{UUID}, 1, 2, 0x0, Disabled", flush=True)\ntime.sleep(60 * loop)')
    with pytest.raises(RuntimeError, match="out of memory"), watch("cuda"):
        raise RuntimeError("out of memory")
    assert running() == []


# -- processors


STAT = """\
cpu  300 10 50 9000 20 3 2 40 7 0
cpu0 100 5 20 4500 10 1 1 30 7 0
cpu1 200 5 30 4500 10 2 1 10 0 0
intr 12345 0 0
ctxt 999
"""


def test_only_the_processors_it_may_run_on_are_read():
    assert parse_stat(STAT, {0, 1}, 100) == (3.65, 0.4)  # 300 + 10 + 50 + 3 + 2 busy, 40 stolen
    assert parse_stat(STAT, {1}, 100) == (2.38, 0.1)
    assert parse_stat(STAT, {5}, 100) is None
    assert parse_stat("cpu0 0 0 0 0 0 0 0 0 0 0", {0}, 100) is None, "a sandbox that counts nothing"


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
    assert cpu_flags(state(), after, TICKS) == []


def test_others_are_what_is_busy_beside_this_process():
    after = state(at=10.0, busy_seconds=118.0, own_seconds=60.0)
    assert cpu_flags(state(), after, TICKS) == ["the CPU was shared: other processes took 40% of its time"]
    assert cpu_flags(state(), replace(after, own_seconds=65.5), TICKS) == [], "12% is what a desktop does"
    assert cpu_flags(state(busy_seconds=None), replace(after, busy_seconds=None), TICKS) == []


def test_a_moment_is_too_short_for_counters_of_hundredths():
    """0.1 s on two processors are 20 ticks: 8 of them may be no more than where the readings fell."""
    after = state(at=0.1, busy_seconds=100.2, own_seconds=50.13)
    assert cpu_flags(state(), after, TICKS) == []
    assert cpu_flags(state(), replace(after, own_seconds=50.05), TICKS) != []


def test_stolen_throttled_and_capped_are_told_apart():
    after = state(at=10.0, stolen_seconds=5.0, throttled=3, capped_seconds=4.0)
    assert cpu_flags(state(), after, TICKS) == [
        "the CPU was shared: other machines took 25% of its time",
        "the CPU was throttled for its heat 3 times in 10.0 s",
        "the CPU was throttled: its quota held it back for 4.0 s in 10.0 s",
    ]


def test_counters_are_read_from_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_state, "affinity", lambda: frozenset({0, 1}))
    monkeypatch.setattr(cpu_state, "ticks_per_second", lambda: 100)
    (tmp_path / "stat").write_text(STAT)
    for cpu, count in ((0, 4), (1, 5)):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
        (folder / "package_throttle_count").write_text("1\n")
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cpu.stat").write_text("usage_usec 99\nnr_throttled 7\nthrottled_usec 2500000\n")
    found = read_cpu(tmp_path, tmp_path)
    assert (found.busy_seconds, found.stolen_seconds) == (3.65, 0.4)
    assert (found.throttled, found.capped_seconds, found.processors) == (11, 2.5, 2)


def test_where_nothing_can_be_read_nothing_is_said(tmp_path):
    before = read_cpu(tmp_path, tmp_path)
    assert before.busy_seconds is None
    assert cpu_flags(before, replace(read_cpu(tmp_path, tmp_path), at=before.at + 10), TICKS) == []


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="no /proc/stat: not Linux")
@pytest.mark.alone
def test_a_process_beside_this_one_is_seen():
    """One that keeps every processor busy, for as long as the block runs."""
    spin = (
        f"import os\nfor _ in range({len(cpu_state.affinity())} - 1):\n os.fork() or None\nwhile True: pass"
    )
    with watch("cpu") as seen:
        beside = subprocess.Popen([sys.executable, "-S", "-c", spin], start_new_session=True)
        time.sleep(2)
        after = time.perf_counter()
    os.killpg(beside.pid, 9)
    beside.wait()
    assert after and any("other processes took" in flag for flag in seen.flags)


# -- which processes are this one's


def test_relatives_are_above_and_below_but_not_beside(tmp_path):
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 13: 12, 20: 10}
    for pid, parent in parents.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b ) {parent} (x) S {parent} 1 1 0 -1\n")
    assert relatives(11, tmp_path) == {1, 10, 11, 12, 13}
    assert relatives(11, tmp_path / "nowhere") == {11}


def test_relatives_here():
    assert {os.getpid(), os.getppid()} <= relatives(os.getpid()) or not Path("/proc/self/stat").exists()
