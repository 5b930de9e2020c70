"""Measure peak memory and free memory between cells.

The peak is the allocator's on a GPU, the resident set's on a CPU.
"""

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

    StorageRef = weakref.ref[torch.UntypedStorage]

MMAP_THRESHOLD_BYTES = 24 << 20
TRIM_THRESHOLD_BYTES = 256 << 20
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""glibc's names for the options, from malloc.h"""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU's or the host's allocator failed; the host's is known by its message only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def configure_malloc() -> None:
    """Keep large CPU tensors out of glibc's heap, and keep the memory of smaller ones in it.

    glibc raises its mmap threshold to 32 MB as large blocks are allocated and freed. Unpacked weights and
    feature tensors are just below that size, and left gaps of one to two GB in the heap during a 1B model's
    quantized pass; with a fixed threshold they return to the system when they are freed. A much lower
    threshold would make a small model pay for fresh pages at each tensor. Once the mmap threshold is set,
    glibc also trims the end of its heap beyond 128 KB, which costs fresh pages at each batch or not,
    depending on where the last block happens to lie: a pass took up to half as long again.
    :func:`free_memory` trims between cells instead.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def free_memory() -> None:
    """Return freed memory to the device and to the system.

    glibc keeps freed blocks of up to 32 MB in its heap, which on a CPU is most of a model: without the
    trim, the next cell's resident set would include the last one's weights.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def live_storages() -> dict[int, StorageRef]:
    """Return weak references to the storages of all tensors in this process, by address."""
    import torch

    found: dict[int, StorageRef] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor):
            continue
        # a tensor subclass may only wrap other tensors, which are found by themselves
        with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = weakref.ref(storage)
    return found


def new_storages(before: dict[int, StorageRef]) -> list[StorageRef]:
    """Return the storages that are alive now and are not in ``before``.

    The reference is compared too, because an address may have been used again.
    """
    found = []
    for address, now in live_storages().items():
        then = before.get(address)
        if then is None or then() is not now():
            found.append(now)
    return found


class PeakMemory:
    """Measure the peak memory of a block: ``with PeakMemory(device) as peak: ...; peak.bytes``."""

    bytes: int = 0

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"

    def __enter__(self) -> Self:
        if self._cuda:
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        else:
            # Linux starts a new high-water mark on this; elsewhere the peak is that of the whole process
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
