"""Hardware and library versions, for the run document and pytest-benchmark's machine info."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

PACKAGES = (
    "qsae-bench", "torch", "transformers", "accelerate", "bitsandbytes", "sae-lens", "tokenizers",
    "safetensors", "datasets", "numpy", "scipy", "pyarrow", "pytest", "pytest-benchmark",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed version of every package that can move a number."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """What the run document keeps; no host name, user name or path in it."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "driver": _driver() if gpus else None,
        "cuda": torch.version.cuda,
        "versions": versions(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.split("\n")[0].strip()
