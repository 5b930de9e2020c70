"""Names of tables: those of a registry, and of hardware."""

from __future__ import annotations

import pytest

from qsae_bench.gate.known_names import KnownNames
from qsae_bench.registry.entries import load_registry

KNOWN = KnownNames({"small": (1, 3)}, ("nf4",), lambda: ("NVIDIA H200", "AMD EPYC 9554 64-Core Processor"))

REAL = [
    "NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "Tesla T4", "GeForce RTX 2080 Ti",
    "NVIDIA GeForce RTX 4090 D", "AMD EPYC 9554 64-Core Processor", "AMD Ryzen 9 7950X 16-Core Processor",
    "Intel(R) Xeon(R) CPU           E5-2670 0 @ 2.60GHz", "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel",
    "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", "Apple M3 Max", "arm", "arm64", "aarch64", "i386",
    "QEMU Virtual CPU version 2.5+", "AMD Instinct MI300X", "Biren BR100", "NVIDIA H20", "NVIDIA B200",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_hardware_that_exists_is_not_refused(name):
    assert KNOWN.why_no_hardware(name) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nvidia H200", "'NVIDIA H200'"), ("NVIDA H100", "'NVIDIA H100'"), ("Nvidia A100", "'NVIDIA A100'"),
        ("NVIDIA H2OO", "'NVIDIA H200'"), ("NVIDIA-H200", "'NVIDIA H200'"), ("H200", "'NVIDIA H200'"),
        ("NVIDIA  H200", "'NVIDIA H200'"), ("Telsa T4", "'Tesla T4'"), ("amd EPYC", "'AMD EPYC'"),
        (" NVIDIA H200", "environment"), ("NVIDIA\nH200", "environment"), ("200", "environment"),
    ],
)  # fmt: skip
def test_a_name_that_no_hardware_has(name, meant):
    assert meant in KNOWN.why_no_hardware(name)


def test_models_quantizations_and_layers():
    assert KNOWN.why_no_model("small") == KNOWN.why_no_model("defaults", ("defaults",)) == ""
    assert "did you mean 'small'?" in KNOWN.why_no_model("smal")
    assert "--registry" in KNOWN.why_no_model("another_one_of_mine")
    assert KNOWN.why_no_quantization("nf4") == ""
    assert "did you mean 'nf4'?" in KNOWN.why_no_quantization("nf5")
    assert KNOWN.why_no_layer("small", 3) == KNOWN.why_no_layer("defaults", 1) == ""
    assert (
        KNOWN.why_no_layer("small", 2)
        == "no SAE of small reads layer 2, so nothing there is gated (layers: 1, 3)"
    )
    assert "any model" in KNOWN.why_no_layer("defaults", 2)


def test_of_a_registry_every_layer_counts_that_can_be_selected():
    registry = load_registry()
    known = KnownNames.of(registry)
    for name, model in registry.models.items():
        every = model.sae_every or model.sae
        for choice in ("", "all", *(["every"] if model.sae_every else [])):
            for layer in model.with_layers(choice).layers:
                assert known.why_no_layer(name, layer) == "", (name, layer, every)
    assert known.why_no_quantization("reference") == ""
