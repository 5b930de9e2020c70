"""What this machine has, asked without torch: GPUs and their memory, main memory, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """GPUs by memory in bytes, main memory, and free disk where downloads and runs go."""

    gpu_bytes: tuple[int, ...]
    memory_bytes: int
    cache_free_bytes: int
    """where the hub's cache is"""
    runs_free_bytes: int
    """where the reference store is"""

    @classmethod
    def here(cls, qsae_dir: Path) -> Machine:
        return cls(gpus(), memory_bytes(), free_bytes(hub_cache()), free_bytes(qsae_dir))


def gpus() -> tuple[int, ...]:
    """Memory of each visible NVIDIA GPU in bytes, in CUDA's order; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        every = tuple(int(line) * 2**20 for line in output.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return every
    shown: list[int] = []
    for part in (part.strip() for part in visible.split(",")):
        named = part.startswith(("GPU-", "MIG-"))  # by UUID: how many is what can be told
        index = len(shown) if named else int(part) if part.isdigit() else len(every)
        if index >= len(every):
            break  # as CUDA has it: -1, or any other that is no GPU, hides itself and all after it
        shown.append(every[index])
    return tuple(shown)


def memory_bytes() -> int:
    """Main memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total


def hub_cache() -> Path:
    """Where huggingface_hub keeps files, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def free_bytes(folder: Path) -> int:
    """Free disk at a folder that may not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
