"""Hardware and library versions, for the run document and pytest-benchmark's machine info."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from qsae_bench.errors import plain

PACKAGES = (
    "qsae-bench", "torch", "transformers", "accelerate", "bitsandbytes", "sae-lens", "tokenizers",
    "safetensors", "datasets", "numpy", "scipy", "pyarrow", "pytest", "pytest-benchmark", "torchao",
    "optimum-quanto", "hqq", "gguf", "compressed-tensors",
)  # fmt: skip


DECISIVE = ("torch", "transformers", "bitsandbytes")
"""that a threshold's provenance names"""


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
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "driver": _driver() if gpus else None,
        "cuda": torch.version.cuda,
        "versions": versions(),
    }


def hardware_of(environment: Mapping[str, Any]) -> str:
    """The GPU's name where a run's cells ran on one, else the CPU's; '' where its environment has neither.

    ``environment`` is what a run document keeps, with the ``device`` of its session.
    """
    gpus = environment.get("gpus")
    name = environment.get("cpu")
    if environment.get("device") != "cpu" and isinstance(gpus, list) and gpus:
        name = gpus[0].get("name") if isinstance(gpus[0], dict) else None
    return plain(name.strip()) if isinstance(name, str) else ""


def versions_of(environment: Mapping[str, Any]) -> str:
    """``torch 2.13.0, transformers 5.23.0, bitsandbytes 0.50.2, driver 580.1, CUDA 13.0``, if kept."""
    found = environment.get("versions")
    versions = found if isinstance(found, dict) else {}
    named = [(name, versions.get(name)) for name in DECISIVE]
    named += [("driver", environment.get("driver")), ("CUDA", environment.get("cuda"))]
    return plain(", ".join(f"{name} {version}" for name, version in named if isinstance(version, str)))


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def gpus_and_driver() -> list[str]:
    """``NVIDIA H100 80GB HBM3, 580.1`` of each GPU, asked without torch; none where there is no driver."""
    return _nvidia_smi("name,driver_version")


def _driver() -> str | None:
    return next(iter(_nvidia_smi("driver_version")), None)


def _nvidia_smi(query: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
