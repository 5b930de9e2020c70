"""Watch whether the device was throttled or shared while something was timed on it, and report it as flags.

Of a GPU: its clocks and why they are low, again and again while the work runs (the driver reports only what
holds at the moment), and which other processes compute on it, before and after. For a CPU see
:mod:`qsae_bench.measure.cpu_state`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qsae_bench.gpus import GpuProcess, GpuSample, GpuSampler, compute_processes
from qsae_bench.measure.cpu_state import cpu_flags, read_cpu

THROTTLE_REASONS: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""bits that no healthy GPU sets under load (NVML's nvmlClocksEventReason…)"""
POWER_CAP = 0x04
"""set by every GPU that works at its power limit: counts only where it costs clocks"""
CLOCK_LOSS = 0.10
"""share of the highest SM clock from which the power limit counts as throttling: a large GPU's matrix
products always run a little below it"""


# -- what it means ----------------------------------------------------------------------------------


def gpu_flags(
    samples: Sequence[GpuSample],
    processes: Sequence[GpuProcess],
    own: Collection[int],
    uuids: Collection[str],
) -> list[str]:
    """Describe in one line each what slowed the GPUs in use, ``uuids`` (empty: all of them), down.

    Processes ``own`` don't count as others: this one, what started it and what it started.
    """
    chosen = [s for s in samples if not uuids or s.uuid in uuids]
    flags = []
    for bit, name in THROTTLE_REASONS.items():
        hit = [s for s in chosen if (s.reasons or 0) & bit]
        if hit:
            flags.append(
                f"the GPU was throttled: {name} in {len(hit)} of {len(chosen)} readings{_lowest_clock(hit)}"
            )
    capped = [s for s in chosen if (s.reasons or 0) & POWER_CAP and _clock_loss(s) > CLOCK_LOSS]
    if capped:
        flags.append(
            f"the GPU was throttled: power limit in {len(capped)} of {len(chosen)} "
            f"readings{_lowest_clock(capped)}"
        )
    if others := other_processes(processes, own, uuids):
        flags.append(f"the GPU was shared: {others} other process{'es' * (others > 1)} computed on it")
    if any(s.mig for s in chosen):
        flags.append("the GPU was shared: MIG is on, and the other slices draw on its power and clocks too")
    return flags


def other_processes(processes: Sequence[GpuProcess], own: Collection[int], uuids: Collection[str]) -> int:
    """Count the processes on these GPUs that are not among ``own``.

    Where none of ``own`` is listed, the ids belong to another namespace (a container sees the host's), and
    one of the listed is this process.
    """
    listed = {process.pid for process in processes if not uuids or process.gpu in uuids}
    if listed & set(own):
        return len(listed - set(own))
    return max(len(listed) - 1, 0)


def _clock_loss(sample: GpuSample) -> float:
    if sample.sm_mhz is None or not sample.max_sm_mhz:
        return 0.0
    return 1 - sample.sm_mhz / sample.max_sm_mhz


def _lowest_clock(samples: Sequence[GpuSample]) -> str:
    """Describe the lowest SM clock among the samples, beside the highest that this GPU has."""
    known = [s for s in samples if s.sm_mhz is not None and s.max_sm_mhz]
    if not known:
        return ""
    worst = max(known, key=_clock_loss)
    return f", SM clock down to {worst.sm_mhz:,} of {worst.max_sm_mhz:,} MHz"


# -- watching -------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Hold what was found; complete once the block under :func:`watch` has ended."""

    flags: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watch(device: str) -> Iterator[Watch]:
    """Watch ``device`` while the block runs. Never raises, and reports nothing where nothing can be
    read."""
    found = Watch()
    if device == "cpu":
        before = read_cpu()
        yield found
        found.flags = cpu_flags(before, read_cpu())
        return
    processes = compute_processes()
    with GpuSampler() as sampler:
        yield found
    processes += compute_processes()
    found.flags = gpu_flags(sampler.samples, processes, related_processes(), visible_gpus())


def visible_gpus() -> frozenset[str]:
    """Return the UUIDs, as NVML writes them, of the GPUs that torch sees; empty where they are not
    known."""
    import torch

    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    uuids = (str(getattr(one, "uuid", "")) for one in found)
    return frozenset(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}" for uuid in uuids if uuid)


def related_processes() -> frozenset[int]:
    """Return the ids of this process, of those that started it, and of all that it started."""
    import psutil

    process = psutil.Process()
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += [*process.parents(), *process.children(recursive=True)]
    return frozenset(one.pid for one in family)
