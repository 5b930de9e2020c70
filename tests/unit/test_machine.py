"""What this machine has, with a driver, a container and a hub cache that are made up."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from fake_nvml import FakeDriver, FakeGpu
from qsae_bench import machine
from qsae_bench.machine import (
    Machine,
    environment,
    free_bytes,
    hardware_of,
    hub_cache,
    memory_bytes,
    usable_processors,
    versions_of,
)

MIB, GIB = 2**20, 2**30


# -- processors -------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")
def test_usable_processors_are_the_affinity_mask():
    assert usable_processors() == os.sched_getaffinity(0)


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


def test_here(cgroup, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeDriver(monkeypatch, FakeGpu(81559 * MIB))
    cgroup({V2: f"{3 * GIB}\n"})
    free = {"/mnt/hub": 5, os.fspath(tmp_path): 7}
    monkeypatch.setenv("HF_HUB_CACHE", "/mnt/hub")
    monkeypatch.setattr(machine, "free_bytes", lambda folder: free[os.fspath(folder)])
    assert Machine.here(tmp_path) == Machine((81559 * MIB,), 3 * GIB, 5, 7)


# -- what a run document records --------------------------------------------------------------------


def test_the_environment_names_no_host_and_no_user():
    import getpass
    import json
    import platform

    recorded = environment()
    text = json.dumps(recorded)
    assert recorded["python"] in sys.version
    assert {"torch", "transformers", "qsae-bench"} <= recorded["versions"].keys()
    for private in (platform.node(), str(Path.home()), f'"{getpass.getuser()}"'):
        assert len(private) < 4 or private not in text


def test_hardware_is_the_gpu_that_was_used_else_the_cpu():
    both = {"cpu": " Some CPU ", "gpus": [{"name": "NVIDIA H100"}], "device": "cuda"}
    assert hardware_of(both) == "NVIDIA H100"
    assert hardware_of(both | {"device": "cpu"}) == "Some CPU"
    assert hardware_of({"cpu": "Some CPU", "gpus": []}) == "Some CPU"
    assert hardware_of({"cpu": " two\nlines\x1b[1m "}) == "two lines [1m"
    for odd in ({}, {"cpu": 7}, both | {"gpus": ["x"]}):
        assert hardware_of(odd) == ""


def test_decisive_versions_are_named_as_far_as_they_are_recorded():
    recorded = {"versions": {"torch": "2.13.0", "numpy": "2.4"}, "driver": "580.1", "cuda": None}
    assert versions_of(recorded) == "torch 2.13.0, driver 580.1"
    assert versions_of({}) == ""
