"""What a machine is asked, with a driver, a container and a hub cache that are made up."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from qsae_bench import machine
from qsae_bench.machine import Machine, free_bytes, gpus, hub_cache, memory_bytes

MIB, GIB = 2**20, 2**30


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """``driver(output)``: an nvidia-smi that answers so, and notes what it was asked."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(output: str, status: int = 0) -> Path:
        script = tmp_path / "nvidia-smi"
        (tmp_path / "output").write_text(output, encoding="utf-8")
        script.write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nwhile read line; do echo "$line"; done < {tmp_path}/output\nexit {status}\n'
        )
        script.chmod(0o755)
        return tmp_path / "asked"

    return install


def test_memory_of_each_gpu(driver):
    asked = driver("81559\n24564\n")
    assert gpus() == (81559 * MIB, 24564 * MIB)
    assert asked.read_text().split() == ["--query-gpu=memory.total", "--format=csv,noheader,nounits"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0,1,2", (10, 20, 30)),
        ("2,0", (30, 10)),
        (" 1 ", (20,)),
        ("", ()),
        ("-1", ()),
        ("none", ()),
        # CUDA's guide: "If one of the indices is invalid, only the devices whose index precedes the
        # invalid index are visible"
        ("0,-1,1", (10,)),
        ("1,3,0", (20,)),
        ("7", ()),
        ("0,,1", (10,)),
    ],
)
def test_visible_gpus_as_cuda_has_it(driver, monkeypatch, visible, found):
    driver("10\n20\n30\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == tuple(size * MIB for size in found)


@pytest.mark.parametrize(
    ("visible", "count"),
    [("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1), ("GPU-1,GPU-2", 2), ("GPU-1,GPU-2,GPU-3,GPU-4", 3), ("GPU-1,-1,GPU-2", 1)],
)  # fmt: skip
def test_gpus_named_by_uuid_are_counted(driver, monkeypatch, visible, count):
    driver("10\n10\n10\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == (10 * MIB,) * count


def test_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()


@pytest.mark.parametrize(
    ("output", "status"),
    [("", 0), ("No devices were found\n", 6), ("NVIDIA-SMI has failed: no driver\n", 9), ("[N/A]\n", 0), ("81559\n", 9)],
)  # fmt: skip
def test_a_driver_without_a_gpu(driver, output, status):
    driver(output, status)
    assert gpus() == ()


def test_a_driver_that_hangs(driver, monkeypatch):
    driver("81559\n")

    def slow(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    assert gpus() == ()


# -- memory -----------------------------------------------------------------------------------------


@pytest.fixture
def cgroup(monkeypatch):
    """``cgroup({path: text})``: what the control group's files say; others are missing."""

    def install(files):
        def read(path, *_, **__):
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(machine.Path, "read_text", read)

    return install


def total_memory() -> int:
    line = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return int(line.split()[1]) * 1024


V2, V1 = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_main_memory_without_a_limit(cgroup):
    total = total_memory()
    for files in ({}, {V2: "max\n"}, {V1: "9223372036854771712\n"}):
        cgroup(files)
        assert memory_bytes() == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("files", [{V2: f"{GIB}\n"}, {V1: f"{GIB}\n"}, {V2: "max\n", V1: f"{GIB}\n"}])
def test_a_containers_limit(cgroup, files):
    cgroup(files)
    assert memory_bytes() == GIB


# -- disk -------------------------------------------------------------------------------------------


def test_free_disk_of_a_folder_to_come(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    for folder in (tmp_path, tmp_path / "not" / "yet" / "here"):
        assert free_bytes(folder) == pytest.approx(free, abs=GIB)


def test_free_disk_of_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_bytes(Path("not/yet")) == pytest.approx(shutil.disk_usage(tmp_path).free, abs=GIB)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/mnt/hf"},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/mnt/cache"},
        {"HF_HUB_CACHE": "/mnt/hub"},
        {"HF_HUB_CACHE": "~/hub", "HF_HOME": "/mnt/hf"},
        {"HF_HOME": "/mnt/hf", "XDG_CACHE_HOME": "/mnt/cache"},
    ],
    ids=lambda variables: " ".join(variables) or "none",
)
def test_the_cache_is_where_huggingface_hub_keeps_it(monkeypatch, variables):
    """By its own module, read anew under these variables."""
    import huggingface_hub

    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    constants = runpy.run_path(str(Path(huggingface_hub.__file__).with_name("constants.py")))
    assert str(hub_cache()) == constants["HF_HUB_CACHE"]


def test_here(driver, cgroup, monkeypatch, tmp_path):
    driver("81559\n")
    cgroup({V2: f"{3 * GIB}\n"})
    free = {"/mnt/hub": 5, os.fspath(tmp_path): 7}
    monkeypatch.setenv("HF_HUB_CACHE", "/mnt/hub")
    monkeypatch.setattr(machine, "free_bytes", lambda folder: free[os.fspath(folder)])
    assert Machine.here(tmp_path) == Machine((81559 * MIB,), 3 * GIB, 5, 7)
