"""Report what this machine is and has: GPUs, processors, main memory, disk and library versions.

GPUs are asked about in :mod:`qsae_bench.gpus`, processes through psutil. torch is imported only by
:func:`environment`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsae_bench import gpus
from qsae_bench.errors import plain

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
        return cls(gpus.gpu_memory(), memory_bytes(), free_bytes(hub_cache()), free_bytes(qsae_dir))


def hardware_names() -> tuple[str, ...]:
    """Return the names of this machine's GPUs and of its CPU, as run documents have them."""
    names = (plain(name.strip()) for name in (*gpus.gpu_names(), cpu_name()))
    return tuple(dict.fromkeys(filter(None, names)))


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

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found],
        "driver": gpus.driver_version() if found else None,
        "cuda": torch.version.cuda,
        "versions": installed_versions(),
    }


def hardware_of(environment: Mapping[str, Any]) -> str:
    """Return the name of the GPU that a run's cells ran on, else of the CPU; '' where neither is recorded.

    ``environment`` is a run document's, with its session's ``device``.
    """
    recorded = environment.get("gpus")
    name = environment.get("cpu")
    if environment.get("device") != "cpu" and isinstance(recorded, list) and recorded:
        name = recorded[0].get("name") if isinstance(recorded[0], dict) else None
    return plain(name.strip()) if isinstance(name, str) else ""


def versions_of(environment: Mapping[str, Any]) -> str:
    """Return ``torch 2.13.0, transformers 5.23.0, …, driver 580.1, CUDA 13.0``, as far as recorded."""
    found = environment.get("versions")
    recorded = found if isinstance(found, dict) else {}
    named = [(name, recorded.get(name)) for name in DECISIVE_PACKAGES]
    named += [("driver", environment.get("driver")), ("CUDA", environment.get("cuda"))]
    return plain(", ".join(f"{name} {version}" for name, version in named if isinstance(version, str)))
