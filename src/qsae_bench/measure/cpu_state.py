"""How much of the processors' time went to others while something was timed, and what throttled them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SHARED = 0.15
"""of the processors' time, from which what others took of it is said"""
TICKS = 4
"""that two readings of two counters may be off by, each processor"""


@dataclass(frozen=True)
class CpuState:
    """Counters of the processors this process may run on; they only grow."""

    busy_seconds: float | None
    """of all processes, on all those processors"""
    stolen_seconds: float
    """that the hypervisor gave to other machines"""
    own_seconds: float
    """of this process and its children"""
    throttled: int
    """times that a core was throttled for its heat"""
    capped_seconds: float
    """that the container's quota kept its processes waiting"""
    at: float
    """seconds on the wall"""
    processors: int


def parse_stat(text: str, processors: Collection[int], ticks: int) -> tuple[float, float] | None:
    """(busy, stolen) seconds of these processors from /proc/stat; None where they are not in it.

    Fields: user nice system idle iowait irq softirq steal guest guest_nice; guests are in user already.
    """
    busy = stolen = 0
    seen = 0
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in processors:
            numbers = [int(n) for n in rest.split() if n.isdecimal()]
            if len(numbers) < 8:
                return None
            busy += sum(numbers[i] for i in (0, 1, 2, 5, 6))
            stolen += numbers[7]
            seen += 1
    return (busy / ticks, stolen / ticks) if seen and busy else None


def parse_cgroup(text: str) -> float:
    """Seconds of throttling in a control group's cpu.stat (version 2); 0 where it has no quota."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "throttled_usec" and value.isdecimal():
            return int(value) / 1e6
    return 0.0


def cpu_flags(before: CpuState, after: CpuState, ticks: int) -> list[str]:
    """What is to be said of the time between two readings."""
    flags = []
    wall, count = after.at - before.at, after.processors
    allowed = wall * count
    slack = max(SHARED * allowed, TICKS * count / ticks)
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
    if capped > SHARED * wall:
        flags.append(f"the CPU was throttled: its quota held it back for {capped:.1f} s in {wall:.1f} s")
    return flags


def read_cpu(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> CpuState:
    """The counters now; what this system doesn't have reads as never having counted."""
    processors = affinity()
    found = parse_stat(text_of(proc / "stat"), processors, ticks_per_second())
    used = os.times()
    counters = [
        text_of(sys / f"devices/system/cpu/cpu{n}/thermal_throttle" / f"{which}_throttle_count")
        for n in processors
        for which in ("core", "package")
    ]
    return CpuState(
        busy_seconds=found[0] if found else None,
        stolen_seconds=found[1] if found else 0.0,
        own_seconds=used.user + used.system + used.children_user + used.children_system,
        throttled=sum(int(text) for text in counters if text.strip().isdecimal()),
        capped_seconds=parse_cgroup(text_of(sys / "fs/cgroup/cpu.stat")),
        at=time.perf_counter(),
        processors=len(processors),
    )


def affinity() -> frozenset[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def text_of(path: Path) -> str:
    """What a file of /proc or /sys holds, '' where it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
