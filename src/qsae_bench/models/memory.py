"""Peak memory of a block: the allocator's on a GPU, the resident set's on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

    Held = weakref.ref[torch.UntypedStorage]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the host's allocator gave up; the host's says so in words only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


MMAP_THRESHOLD_BYTES = 24 << 20
TRIM_THRESHOLD_BYTES = 256 << 20
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""glibc's names for the options, from malloc.h"""


def steady_heap() -> None:
    """Keep large CPU tensors out of glibc's heap, and what smaller ones had in it.

    glibc raises its own threshold to 32 MB as large blocks come and go. Unpacked weights and feature
    tensors lie just there, and left gaps of one to two GB in the heap of a 1B model's quantized pass: so
    those go back to the system when they are freed. Much lower, and a small model pays for fresh pages
    at each tensor. It pays for them at each batch where glibc trims the end of its heap, which it does
    beyond 128 KB once the other threshold is set, or not, as the last block happens to lie: a pass took
    up to half as long again, by chance. :func:`give_back` trims between cells.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def give_back() -> None:
    """Return freed memory to the device and to the system.

    glibc keeps freed blocks of up to 32 MB in its heap, which on a CPU is most of a model: without the
    trim, the next cell's resident set would hold the last one's weights.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def live_storages() -> dict[int, Held]:
    """Address -> every storage that some tensor in this process holds, without holding it."""
    import torch

    found: dict[int, Held] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor):
            continue
        # a tensor subclass may only wrap others, which are found by themselves
        with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = weakref.ref(storage)
    return found


def born_since(before: dict[int, Held]) -> list[Held]:
    """Storages that are alive now and were not then; an address may have been used again."""
    found = []
    for address, held in live_storages().items():
        then = before.get(address)
        if then is None or then() is not held():
            found.append(held)
    return found


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
