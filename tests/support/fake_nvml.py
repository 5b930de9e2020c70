"""Stand in for NVIDIA's driver: the functions of the real module ``pynvml`` report GPUs that are made up.

Only names that ``pynvml`` has can be replaced, and memory and processes come in its own structures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pynvml

UUID, OTHER_UUID = "GPU-9f4c2d1e-0000-1111-2222-333344445555", "GPU-11111111-0000-1111-2222-333344445555"


@dataclass
class FakeGpu:
    """One GPU; None for what it doesn't support."""

    memory_bytes: int = 80 << 30
    name: str = "NVIDIA H100"
    uuid: str = UUID
    readings: list[tuple[int | None, int | None]] = field(default_factory=lambda: [(1980, 0)])
    """(SM clock in MHz, bits of why it is low) at each sampling; the last one stays"""
    max_sm_mhz: int | None = 1980
    mig: bool | None = False
    pids: tuple[int, ...] | None = ()

    def __post_init__(self):
        self._reading = itertools.chain(self.readings, itertools.repeat(self.readings[-1]))

    def next_clock(self):
        clock, self._reasons = next(self._reading)
        return supported(clock)

    def reasons(self):
        return supported(self._reasons)


def supported(value):
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


def process(pid):
    return pynvml.nvmlStructToFriendlyObject(pynvml.c_nvmlProcessInfo_v3_t(pid=pid))


class FakeDriver:
    """Install with a ``monkeypatch``; ``open_sessions`` counts initialisations without a shutdown."""

    def __init__(self, monkeypatch, *gpus: FakeGpu, version="580.1", older=False):
        self.open_sessions = 0

        def fail(code):
            raise pynvml.NVMLError(code)

        def init():
            self.open_sessions += 1

        def shut_down():
            self.open_sessions -= 1

        def event_reasons(gpu):
            return fail(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) if older else gpu.reasons()

        functions = {
            "nvmlInit": init,
            "nvmlShutdown": shut_down,
            "nvmlSystemGetDriverVersion": lambda: version,
            "nvmlDeviceGetCount": lambda: len(gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
            "nvmlDeviceGetUUID": lambda gpu: gpu.uuid,
            "nvmlDeviceGetName": lambda gpu: gpu.name,
            "nvmlDeviceGetMemoryInfo": lambda gpu: pynvml.c_nvmlMemory_t(total=gpu.memory_bytes),
            # a reading begins with its clock
            "nvmlDeviceGetCurrentClocksEventReasons": event_reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: gpu.reasons(),
            "nvmlDeviceGetClockInfo": lambda gpu, kind: gpu.next_clock(),
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: supported(gpu.max_sm_mhz),
            "nvmlDeviceGetMigMode": lambda gpu: [int(supported(gpu.mig)), 0],
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [process(n) for n in supported(gpu.pids)],
        }
        for name, function in functions.items():
            monkeypatch.setattr(pynvml, name, function)


def no_driver(monkeypatch, code=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND):
    """Let NVML be missing, or fail with another of its errors."""

    def fail():
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)


def hung_driver(monkeypatch, released):
    """Let every first call block until the event ``released`` is set."""
    monkeypatch.setattr(pynvml, "nvmlInit", released.wait)
