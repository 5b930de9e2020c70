"""Read how much processor time others took while something was timed, and whether the CPU was throttled."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from qsae_bench.machine import usable_processors

SHARED_FRACTION = 0.15
"""of the processors' time: what others took is reported from here on"""
TICK_SECONDS = 0.01
"""resolution of the kernel's counters (USER_HZ is 100 on every Linux)"""
COUNTER_TICKS = 4
"""that two readings of two counters may be off by, for each processor"""


@dataclass(frozen=True)
class CpuState:
    """Hold counters of the processors this process may run on; they only grow."""

    busy_seconds: float | None
    """of all processes, on all those processors; None where the system doesn't count it"""
    stolen_seconds: float
    """that the hypervisor gave to other machines"""
    own_seconds: float
    """of this process and its children"""
    throttled: int
    """how often a core was throttled for its heat"""
    capped_seconds: float
    """that the container's quota made its processes wait"""
    at: float
    """seconds on the wall clock"""
    processors: int


def read_cpu(sys: Path = Path("/sys")) -> CpuState:
    """Read the counters; what this system doesn't have reads as never having counted."""
    processors = usable_processors()
    busy, stolen = _busy_and_stolen(processors)
    used = os.times()
    counters = [
        _text_of(sys / f"devices/system/cpu/cpu{n}/thermal_throttle" / f"{which}_throttle_count")
        for n in processors
        for which in ("core", "package")
    ]
    return CpuState(
        busy_seconds=busy,
        stolen_seconds=stolen,
        own_seconds=used.user + used.system + used.children_user + used.children_system,
        throttled=sum(int(text) for text in counters if text.strip().isdecimal()),
        capped_seconds=parse_cgroup(_text_of(sys / "fs/cgroup/cpu.stat")),
        at=time.perf_counter(),
        processors=len(processors),
    )


def _busy_and_stolen(processors: frozenset[int]) -> tuple[float | None, float]:
    """Return the seconds that these processors worked, and those the hypervisor took.

    A guest's time is in ``user`` already. A sandbox that counts nothing reports zeros: then None and 0.
    """
    import psutil

    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, IndexError, ValueError):  # no /proc, or one that is not Linux's
        return None, 0.0
    chosen = [one for number, one in enumerate(times) if number in processors]
    fields = ("user", "nice", "system", "irq", "softirq")
    busy = sum(getattr(one, name, 0.0) for one in chosen for name in fields)
    return busy or None, sum(getattr(one, "steal", 0.0) for one in chosen) if busy else 0.0


def parse_cgroup(text: str) -> float:
    """Return the seconds of throttling in a control group's cpu.stat (version 2); 0 where it has no
    quota."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "throttled_usec" and value.isdecimal():
            return int(value) / 1e6
    return 0.0


def cpu_flags(before: CpuState, after: CpuState) -> list[str]:
    """Describe in one line each what slowed the processors down between two readings."""
    flags = []
    wall, count = after.at - before.at, after.processors
    allowed = wall * count
    slack = max(SHARED_FRACTION * allowed, COUNTER_TICKS * count * TICK_SECONDS)
    if before.busy_seconds is not None and after.busy_seconds is not None:
        own = after.own_seconds - before.own_seconds
        others = after.busy_seconds - before.busy_seconds - own
        if others > slack:
            flags.append(
                f"the CPU was shared: other processes took {100 * others / allowed:.0f}% of its time"
            )
    stolen = after.stolen_seconds - before.stolen_seconds
    if stolen > slack:
        flags.append(f"the CPU was shared: other machines took {100 * stolen / allowed:.0f}% of its time")
    if after.throttled > before.throttled:
        flags.append(
            f"the CPU was throttled for its heat {after.throttled - before.throttled} times in {wall:.1f} s"
        )
    capped = after.capped_seconds - before.capped_seconds
    if capped > SHARED_FRACTION * wall:
        flags.append(f"the CPU was throttled: its quota held it back for {capped:.1f} s in {wall:.1f} s")
    return flags


def _text_of(path: Path) -> str:
    """Return the content of a file of /sys, '' where it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
