"""Report what this machine is and has: GPUs, processors, main memory, disk and library versions.

GPUs are asked about through NVML, NVIDIA's driver library, and processes through psutil. torch is imported
only by :func:`environment`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qsae_bench.errors import plain

T = TypeVar("T")

DRIVER_TIMEOUT_SECONDS = 10.0
"""after which a call to the driver counts as hung"""

PACKAGES = (
    "qsae-bench", "torch", "transformers", "accelerate", "bitsandbytes", "sae-lens", "tokenizers",
    "safetensors", "datasets", "numpy", "scipy", "pyarrow", "pytest", "pytest-benchmark", "torchao",
    "optimum-quanto", "hqq", "gguf", "compressed-tensors",
)  # fmt: skip
"""packages that can change a measured number; a run document records their versions"""

DECISIVE_PACKAGES = ("torch", "transformers", "bitsandbytes")
"""packages whose versions a threshold's provenance names"""


@dataclass(frozen=True)
class Machine:
    """Hold the sizes that decide whether a cell fits: GPU and main memory, free disk; all in bytes."""

    gpu_bytes: tuple[int, ...]
    memory_bytes: int
    cache_free_bytes: int
    """free disk at the hub's cache, where downloads go"""
    runs_free_bytes: int
    """free disk at ``--qsae-dir``, where the reference store is"""

    @classmethod
    def here(cls, qsae_dir: Path) -> Machine:
        """Measure this machine."""
        return cls(gpu_memory(), memory_bytes(), free_bytes(hub_cache()), free_bytes(qsae_dir))


# -- GPUs, by NVIDIA's driver -----------------------------------------------------------------------


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


# -- processors, memory, disk -----------------------------------------------------------------------


def usable_processors() -> frozenset[int]:
    """Return the numbers of the processors that this process may run on."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return frozenset(process.cpu_affinity())
    return frozenset(range(psutil.cpu_count() or 1))


def cpu_name() -> str:
    """Return the processor's model name, '' where the system doesn't say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def memory_bytes() -> int:
    """Return the size of main memory, or the container's limit where that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total


def hub_cache() -> Path:
    """Return where huggingface_hub keeps files, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def free_bytes(folder: Path) -> int:
    """Return the free disk space at a folder that may not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


# -- what a run document records --------------------------------------------------------------------


def installed_versions() -> dict[str, str]:
    """Return the installed version of each of :data:`PACKAGES` that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Return the hardware and library versions for a run document; no host name, user name or path."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "driver": ask_driver(lambda nvml: str(nvml.nvmlSystemGetDriverVersion())) if gpus else None,
        "cuda": torch.version.cuda,
        "versions": installed_versions(),
    }


def hardware_of(environment: Mapping[str, Any]) -> str:
    """Return the name of the GPU that a run's cells ran on, else of the CPU; '' where neither is recorded.

    ``environment`` is a run document's, with its session's ``device``.
    """
    gpus = environment.get("gpus")
    name = environment.get("cpu")
    if environment.get("device") != "cpu" and isinstance(gpus, list) and gpus:
        name = gpus[0].get("name") if isinstance(gpus[0], dict) else None
    return plain(name.strip()) if isinstance(name, str) else ""


def versions_of(environment: Mapping[str, Any]) -> str:
    """Return ``torch 2.13.0, transformers 5.23.0, …, driver 580.1, CUDA 13.0``, as far as recorded."""
    found = environment.get("versions")
    recorded = found if isinstance(found, dict) else {}
    named = [(name, recorded.get(name)) for name in DECISIVE_PACKAGES]
    named += [("driver", environment.get("driver")), ("CUDA", environment.get("cuda"))]
    return plain(", ".join(f"{name} {version}" for name, version in named if isinstance(version, str)))
