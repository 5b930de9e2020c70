"""Was the device throttled or shared while something was timed on it? Said where it can be told.

A GPU is asked through nvidia-smi: its clocks and why they are low, every quarter of a second while the
work runs (the driver tells only what holds now), and which other processes compute on it, before and
after. A CPU is asked through /proc and /sys: how much of its time others took, and how often it was
throttled.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qsae_bench.measure.cpu_state import cpu_flags, read_cpu, text_of, ticks_per_second

TIMEOUT_SECONDS = 10.0
LOOP_MILLISECONDS = 250
FIELDS = "uuid,clocks.sm,clocks.max.sm,{reasons},mig.mode.current"
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""the bit mask's name from driver 535 on, and before"""

THROTTLED: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""bits that no healthy GPU sets under load (NVML's nvmlClocksEventReason…)"""
POWER_CAP = 0x04
"""set by every GPU that works at its power limit: counts only where it costs clocks"""
CLOCK_LOSS = 0.10
"""of the highest SM clock, from which the power limit counts as throttling: a large GPU's matrix products
run a little below it always"""


@dataclass(frozen=True)
class GpuSample:
    """One line of nvidia-smi about one GPU; None where it has no number."""

    uuid: str
    sm_mhz: int | None
    max_sm_mhz: int | None
    reasons: int | None
    mig: bool


def parse_samples(text: str) -> list[GpuSample]:
    """The lines of ``--query-gpu`` for :data:`FIELDS`, as csv,noheader,nounits; others are skipped."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and parts[0].startswith("GPU-"):
            uuid, now, most, reasons, mig = parts
            found.append(
                GpuSample(uuid, _number(now, 10), _number(most, 10), _number(reasons, 16), mig == "Enabled")
            )
    return found


def parse_apps(text: str) -> list[tuple[str, int]]:
    """(uuid, process id) of every line of ``--query-compute-apps=gpu_uuid,pid``."""
    found = []
    for line in text.splitlines():
        uuid, _, pid = (part.strip() for part in line.partition(","))
        if uuid.startswith("GPU-") and (number := _number(pid, 10)) is not None:
            found.append((uuid, number))
    return found


def _number(text: str, base: int) -> int | None:
    try:
        return int(text, base)
    except ValueError:  # [N/A], [Not Supported], [Unknown Error]
        return None


def gpu_flags(
    samples: Sequence[GpuSample],
    apps: Sequence[tuple[str, int]],
    own: Collection[int],
    uuids: Collection[str],
) -> list[str]:
    """What is to be said of the GPUs ``uuids`` (of all, where that is empty).

    ``own`` are the process ids that are no others: this process, what it started and what started it.
    """
    chosen = [s for s in samples if not uuids or s.uuid in uuids]
    flags = []
    for bit, name in THROTTLED.items():
        hit = [s for s in chosen if (s.reasons or 0) & bit]
        if hit:
            flags.append(
                f"the GPU was throttled: {name} in {len(hit)} of {len(chosen)} readings{_clock(hit)}"
            )
    capped = [s for s in chosen if (s.reasons or 0) & POWER_CAP and _loss(s) > CLOCK_LOSS]
    if capped:
        flags.append(
            f"the GPU was throttled: power limit in {len(capped)} of {len(chosen)} readings{_clock(capped)}"
        )
    if others := other_processes(apps, own, uuids):
        flags.append(f"the GPU was shared: {others} other process{'es' * (others > 1)} computed on it")
    if any(s.mig for s in chosen):
        flags.append("the GPU was shared: MIG is on, and the other slices draw on its power and clocks too")
    return flags


def other_processes(apps: Sequence[tuple[str, int]], own: Collection[int], uuids: Collection[str]) -> int:
    """How many computed on these GPUs beside ``own``.

    Where none of ``own`` is listed the ids are another namespace's (a container sees the host's), and one
    of the listed is this process.
    """
    listed = {pid for uuid, pid in apps if not uuids or uuid in uuids}
    if listed & set(own):
        return len(listed - set(own))
    return max(len(listed) - 1, 0)


def _loss(sample: GpuSample) -> float:
    if sample.sm_mhz is None or not sample.max_sm_mhz:
        return 0.0
    return 1 - sample.sm_mhz / sample.max_sm_mhz


def _clock(samples: Sequence[GpuSample]) -> str:
    """The lowest SM clock among them, beside the highest that this GPU has."""
    known = [s for s in samples if s.sm_mhz is not None and s.max_sm_mhz]
    if not known:
        return ""
    worst = max(known, key=_loss)
    return f", SM clock down to {worst.sm_mhz:,} of {worst.max_sm_mhz:,} MHz"


# -- watching -------------------------------------------------------------------------------------


@dataclass
class Watch:
    """``flags`` are there when the block under :func:`watch` has ended."""

    flags: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watch(device: str) -> Iterator[Watch]:
    """Watch ``device`` while the block runs. Never raises, and says nothing where nothing can be read."""
    found = Watch()
    if device == "cpu":
        before = read_cpu()
        yield found
        found.flags = cpu_flags(before, read_cpu(), ticks_per_second())
        return
    apps = parse_apps(_smi("--query-compute-apps=gpu_uuid,pid"))
    with Sampler() as sampler:
        yield found
    apps += parse_apps(_smi("--query-compute-apps=gpu_uuid,pid"))
    found.flags = gpu_flags(parse_samples(sampler.text), apps, relatives(os.getpid()), visible_gpus())


class Sampler:
    """nvidia-smi in a loop; ``text`` is what it wrote between entering and leaving."""

    def __init__(self) -> None:
        self.text = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []

    def __enter__(self) -> Sampler:
        for reasons in REASONS:
            fields = FIELDS.format(reasons=reasons)
            if not parse_samples(_smi(f"--query-gpu={fields}")):  # no such tool, or no such field
                continue
            command = ["nvidia-smi", f"--query-gpu={fields}", CSV, f"--loop-ms={LOOP_MILLISECONDS}"]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="ascii",
                    errors="replace",
                )
            except OSError:
                return self
            first = threading.Event()
            self._reader = threading.Thread(target=self._read, args=(first,), daemon=True)
            self._reader.start()
            first.wait(TIMEOUT_SECONDS)  # so that its start is not part of what is timed
            break
        return self

    def _read(self, first: threading.Event) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            first.set()
        first.set()

    def __exit__(self, *exc: object) -> None:
        if self._process is None or self._reader is None:
            return
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(TIMEOUT_SECONDS)
        self.text = "".join(self._lines)


CSV = "--format=csv,noheader,nounits"


def _smi(query: str) -> str:
    """One answer of nvidia-smi, '' where it gives none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, CSV],
            capture_output=True,
            encoding="ascii",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def visible_gpus() -> frozenset[str]:
    """UUIDs, as nvidia-smi writes them, of the GPUs that torch sees; empty where they are not known."""
    import torch

    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    uuids = (str(getattr(one, "uuid", "")) for one in found)
    return frozenset(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}" for uuid in uuids if uuid)


def relatives(pid: int, proc: Path = Path("/proc")) -> frozenset[int]:
    """``pid``, what started it, and all that they run below ``pid``; only ``pid`` where /proc is absent."""
    parents = {}
    for folder in proc.glob("[0-9]*"):
        _, _, rest = text_of(folder / "stat").rpartition(")")  # a command's name may hold anything
        parts = rest.split()
        if len(parts) > 1 and parts[1].isdecimal():
            parents[int(folder.name)] = int(parts[1])
    family, above = {pid}, pid
    while (above := parents.get(above, 0)) and above not in family:
        family.add(above)
    below = {pid}
    while fresh := {child for child, parent in parents.items() if parent in below} - below:
        below |= fresh
    return frozenset(family | below)
