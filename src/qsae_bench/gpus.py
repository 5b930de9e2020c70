"""Ask NVIDIA's driver about the GPUs, through its library NVML: what they are, and what they do now.

A machine without the driver has no GPU: nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

DRIVER_TIMEOUT_SECONDS = 10.0
"""after which a call to the driver counts as hung"""

SAMPLE_SECONDS = 0.25


# -- asking the driver ------------------------------------------------------------------------------


@contextlib.contextmanager
def nvml_session() -> Iterator[Any]:
    """Initialise NVML for the body, which gets the module ``pynvml``, and shut it down afterwards."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def ask_driver(question: Callable[[Any], T]) -> T | None:
    """Return ``question(pynvml)``; None without the library or a driver, or when the driver fails.

    A hung driver blocks its caller for good, so the call is made in a thread that can be abandoned: then
    the answer is None as well.
    """
    answers: list[T] = []

    def ask() -> None:
        # whatever is wrong with the driver, there is no GPU then, and CUDA will say why
        with contextlib.suppress(Exception), nvml_session() as nvml:
            answers.append(question(nvml))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DRIVER_TIMEOUT_SECONDS)
    return answers[0] if answers else None


def gpu_handles(nvml: Any) -> list[Any]:
    """Return NVML's handle of every GPU in the machine, visible to CUDA or not, in the driver's order."""
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _reported(nvml: Any, read: Callable[..., Any], *arguments: Any) -> Any:
    """Return what one NVML function returns, None where this GPU or driver doesn't support it."""
    try:
        return read(*arguments)
    except nvml.NVMLError:
        return None


# -- what they are ---------------------------------------------------------------------------------


def gpu_names() -> list[str]:
    """Return the name of each GPU; nothing where there is no driver."""
    return (
        ask_driver(lambda nvml: [str(nvml.nvmlDeviceGetName(handle)) for handle in gpu_handles(nvml)]) or []
    )


def gpu_memory() -> tuple[int, ...]:
    """Return the memory of each GPU that ``CUDA_VISIBLE_DEVICES`` shows, in bytes, in CUDA's order.

    NVML itself ignores that variable. The result is empty where there is no driver.
    """
    installed = ask_driver(
        lambda nvml: [int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in gpu_handles(nvml)]
    )
    every = tuple(installed or ())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return every
    shown: list[int] = []
    for part in (part.strip() for part in visible.split(",")):
        by_uuid = part.startswith(("GPU-", "MIG-"))  # which one it is stays open: only their number counts
        index = len(shown) if by_uuid else int(part) if part.isdigit() else len(every)
        if index >= len(every):
            break  # as in CUDA: an index that is no GPU, such as -1, hides itself and all after it
        shown.append(every[index])
    return tuple(shown)


def gpu_names_and_driver() -> list[str]:
    """Return ``NVIDIA H100 80GB HBM3, 580.1`` for each GPU; nothing where there is no driver."""

    def name_each(nvml: Any) -> list[str]:
        driver = nvml.nvmlSystemGetDriverVersion()
        return [f"{nvml.nvmlDeviceGetName(handle)}, {driver}" for handle in gpu_handles(nvml)]

    return ask_driver(name_each) or []


def driver_version() -> str | None:
    """Return the driver's version; None where there is no driver."""
    return ask_driver(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


# -- what they do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuSample:
    """Hold one reading of one GPU; None for what it doesn't report."""

    uuid: str
    sm_mhz: int | None
    max_sm_mhz: int | None
    reasons: int | None
    """bit mask of why the clocks are low"""
    mig: bool
    """whether the GPU is divided into slices"""


@dataclass(frozen=True)
class GpuProcess:
    """Identify a process that computes on a GPU; in a container the id may be the host's."""

    gpu: str
    """the GPU's UUID"""
    pid: int


def sample_gpus(nvml: Any) -> list[GpuSample]:
    """Read clocks and their limits of every GPU; one that has no UUID, being lost, is left out."""
    found = []
    for handle in gpu_handles(nvml):
        uuid = _reported(nvml, nvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            continue
        clock = _reported(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        highest = _reported(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
        reasons = _reported(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:  # its name before driver 535
            reasons = _reported(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        mig = _reported(nvml, nvml.nvmlDeviceGetMigMode, handle)  # [now, after the next reset]
        in_slices = mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE
        found.append(GpuSample(uuid, clock, highest, reasons, in_slices))
    return found


def compute_processes() -> list[GpuProcess]:
    """List the processes that compute on each GPU, as far as the driver shows them."""

    def list_each(nvml: Any) -> list[GpuProcess]:
        found = []
        for handle in gpu_handles(nvml):
            uuid = _reported(nvml, nvml.nvmlDeviceGetUUID, handle)
            running = _reported(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
            found += [GpuProcess(uuid, process.pid) for process in running if uuid is not None]
        return found

    return ask_driver(list_each) or []


class GpuSampler:
    """Sample the GPUs in a thread between entering and leaving; ``samples`` are the readings so far."""

    def __init__(self) -> None:
        self.samples: list[GpuSample] = []
        self._first, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> GpuSampler:
        self._thread.start()
        self._first.wait(DRIVER_TIMEOUT_SECONDS)  # so that its start is not part of what is timed
        return self

    def _run(self) -> None:
        try:
            with contextlib.suppress(Exception), nvml_session() as nvml:  # no driver: nothing to report
                while True:
                    self.samples += sample_gpus(nvml)
                    self._first.set()
                    if self._stop.wait(SAMPLE_SECONDS):
                        return
        finally:
            self._first.set()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(DRIVER_TIMEOUT_SECONDS)
