"""What NVIDIA's driver tells, by one that is made up."""

from __future__ import annotations

import sys
import threading

import pynvml
import pytest

from fake_nvml import OTHER_UUID, UUID, FakeDriver, FakeGpu, hung_driver, no_driver
from qsae_bench import gpus
from qsae_bench.gpus import (
    GpuProcess,
    GpuSample,
    ask_driver,
    compute_processes,
    driver_version,
    gpu_memory,
    gpu_names_and_driver,
    sample_gpus,
)

MIB = 2**20


@pytest.fixture(autouse=True)
def every_gpu_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_memory_of_each_gpu(monkeypatch):
    driver = FakeDriver(monkeypatch, FakeGpu(81559 * MIB), FakeGpu(24564 * MIB))
    assert gpu_memory() == (81559 * MIB, 24564 * MIB)
    assert driver.open_sessions == 0


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
def test_visible_gpus_as_cuda_has_it(monkeypatch, visible, found):
    FakeDriver(monkeypatch, *(FakeGpu(size * MIB) for size in (10, 20, 30)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory() == tuple(size * MIB for size in found)


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1), ("GPU-1,GPU-2", 2), ("GPU-1,GPU-2,GPU-3,GPU-4", 3),
        ("GPU-1,-1,GPU-2", 1), ("MIG-1,MIG-2", 2),
    ],
)  # fmt: skip
def test_gpus_named_by_uuid_are_counted(monkeypatch, visible, count):
    FakeDriver(monkeypatch, *[FakeGpu(10 * MIB)] * 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory() == (10 * MIB,) * count


def test_names_and_driver(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(), FakeGpu(name="NVIDIA L4"), version="590.0")
    assert gpu_names_and_driver() == ["NVIDIA H100, 590.0", "NVIDIA L4, 590.0"]
    assert driver_version() == "590.0"


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_is_no_gpu(monkeypatch, code):
    no_driver(monkeypatch, code)
    assert gpu_memory() == ()
    assert (gpu_names_and_driver(), driver_version(), compute_processes()) == ([], None, [])
    assert ask_driver(lambda nvml: "answered") is None


def test_no_library_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_memory() == ()


def test_a_gpu_that_is_lost_while_it_is_asked(monkeypatch):
    driver = FakeDriver(monkeypatch, FakeGpu())

    def lost(gpu):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
    assert gpu_memory() == ()
    assert driver.open_sessions == 0


def test_a_driver_that_hangs_is_no_gpu(monkeypatch):
    released = threading.Event()
    hung_driver(monkeypatch, released)
    monkeypatch.setattr(gpus, "DRIVER_TIMEOUT_SECONDS", 0.1)
    assert gpu_memory() == ()
    released.set()


# -- what they do now -------------------------------------------------------------------------------


def test_each_gpu_is_sampled(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(readings=[(345, 1), (990, 0x68)]), FakeGpu(uuid=OTHER_UUID, mig=True))
    first, second = sample_gpus(pynvml), sample_gpus(pynvml)
    assert first == [GpuSample(UUID, 345, 1980, 1, False), GpuSample(OTHER_UUID, 1980, 1980, 0, True)]
    assert second[0] == GpuSample(UUID, 990, 1980, 0x68, False)


def test_what_a_gpu_does_not_support_is_none(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(readings=[(None, None)], max_sm_mhz=None, mig=None, pids=None))
    assert sample_gpus(pynvml) == [GpuSample(UUID, None, None, None, False)]
    assert compute_processes() == []


def test_an_older_driver_names_the_reasons_otherwise(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(readings=[(705, 8)]), older=True)
    assert sample_gpus(pynvml)[0].reasons == 8


def test_processes_are_listed_with_their_gpu(monkeypatch):
    FakeDriver(monkeypatch, FakeGpu(pids=(4242, 17)), FakeGpu(uuid=OTHER_UUID, pids=None))
    assert compute_processes() == [GpuProcess(UUID, 4242), GpuProcess(UUID, 17)]
