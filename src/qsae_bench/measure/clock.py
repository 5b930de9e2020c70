"""Read the clock that work on a device is timed by: ``perf_counter`` for a CPU, CUDA events for GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class GpuClock:
    """Read seconds from the GPU's own clock: an event, recorded and waited for once all GPUs are done.

    A reading is the sum of the times between consecutive events. Comparing each event with one at the start
    would be too coarse: the time between two events is a float32 of milliseconds, which resolves a quarter
    of a millisecond after an hour. Summed up, the time between two successive readings is as exact as the
    events are.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        import torch

        synchronize("cuda")
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1000
        self._last = event
        return self._seconds


_now: Callable[[], float] = time.perf_counter


def use(device: str) -> None:
    """Make :func:`now` read the clock of this device from here on."""
    global _now
    _now = time.perf_counter if device == "cpu" else GpuClock()


def now() -> float:
    """Return seconds on the clock of the device in use.

    It is pytest-benchmark's timer as well, which is chosen before the device is known.
    """
    return _now()


def report_rounds(benchmark: Any, seconds: Sequence[float]) -> None:
    """Record rounds in pytest-benchmark that were timed elsewhere.

    pytest-benchmark only records what its own timer reads: for this call :func:`now` reads out ``seconds``.
    """
    global _now
    readings = iter([reading for one in seconds for reading in (0.0, one)])
    before, _now = _now, lambda: next(readings)
    try:
        benchmark.pedantic(lambda: None, rounds=max(1, len(seconds)))  # when disabled, it reads no time
    finally:
        _now = before


def synchronize(device: torch.device | str) -> None:
    """Wait until the GPUs that this process uses are idle; a CPU has nothing pending."""
    import torch

    if str(device) == "cpu":
        return
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_allocated(index):  # waiting for an unused one would create a context there
            torch.cuda.synchronize(index)
