"""Peak memory of a block: the allocator's on a GPU, the resident set's on a CPU."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class PeakMemory:
    """``with PeakMemory(device) as peak: ...; peak.bytes``."""

    bytes: int = 0

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"

    def __enter__(self) -> Self:
        if self._cuda:
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        else:
            # Linux starts a new high-water mark on this; elsewhere the process's own peak stands
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._cuda:
            import torch

            devices = range(torch.cuda.device_count())
            self.bytes = sum(torch.cuda.max_memory_allocated(index) for index in devices)
        else:
            self.bytes = _resident_peak()


def _resident_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
