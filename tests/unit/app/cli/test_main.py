"""``qsae-bench list`` and ``plan`` as a user types them: what is printed, and one line for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fake_nvml import FakeDriver, FakeGpu
from qsae_bench import gpus, machine
from qsae_bench.app.cli.main import main
from qsae_bench.registry.entries import load_registry

ENTRIES = """
[models.mine]
source = "some/model"
n_layers = 4
d_model = 8
layers = [1, 2]
corpus = "tiny"
sae = { folder = "./saes", d_in = 8 }
[quantizations.five]
backend = "rtn"
options = { bits = 5 }
"""


@pytest.fixture
def run(capsys, monkeypatch):
    """``run(*arguments)`` -> (status, standard output, standard error); a machine with one 80 GiB GPU."""
    monkeypatch.setattr(gpus, "gpu_memory", lambda: (80 * 2**30,))
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 500 * 2**30)

    def call(*arguments):
        status = main(arguments)
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def entries(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(ENTRIES, encoding="utf-8")
    return str(file)


def tables(output: str) -> dict[str, dict[str, list[str]]]:
    """A table's first heading (twice met: the second with the next one's) -> first column -> other columns."""
    found: dict[str, dict[str, list[str]]] = {}
    lines = output.splitlines()
    for index, line in enumerate(lines):
        if not re.fullmatch(r"-+( +-+)*", line):
            continue
        heads, rows = re.split(r"  +", lines[index - 1].strip()), {}
        edges = [(part.start(), part.end()) for part in re.finditer(r"-+", line)]
        for row in lines[index + 1 :]:
            if not row.strip():
                break
            first, *others = (row[start:end].strip() for start, end in edges)
            if not first:  # a row goes on
                first = list(rows)[-1]
                others = [" ".join(filter(None, pair)) for pair in zip(rows[first], others, strict=True)]
            rows[first] = others
        found[f"{heads[0]} {heads[1]}"] = rows
    return found


def cells(output: str) -> list[str]:
    return list(tables(output)["cell on"])


# -- list -------------------------------------------------------------------------------------------


def test_list_has_every_entry(run):
    status, output, _ = run("list")
    found, registry = tables(output), load_registry()
    assert status == 0
    assert list(found["model source"]) == list(found["model SAEs"]) == list(registry.models)
    assert list(found["quantization backend"]) == list(registry.quantizations)
    assert list(found["corpus kind"]) == list(registry.corpora)
    assert "--corpus textfile:PATH" in output
    assert "by default: models tiny_gemma3, gemma3_4b, gemma3_12b" in output
    assert "by default: quantizations reference, int8, nf4, fp4" in output


def test_list_says_what_a_model_needs_and_offers(run):
    _, output, _ = run("list")
    found = tables(output)
    assert found["model source"]["tiny_gemma3"] == ["package:tiny/data/model", "6", "192", "tiny", "CPU"]
    assert found["model source"]["gemma3_12b"] == [
        "google/gemma-3-12b-pt", "48", "3840", "pile10k", "GPU, 27 GiB, HF_TOKEN",
    ]  # fmt: skip
    assert found["model source"]["qwen3_8b"][-1] == "GPU, 23 GiB"
    assert found["model SAEs"]["gemma3_12b"] == ["gemma-scope-2-12b-pt-res", "24", "12, 24, 31, 41"]
    assert found["model every"]["gemma3_12b"] == [
        "gemma-scope-2-12b-pt-res-all 0–47", "16k, 65k, 262k, 1m", "small, medium, big",
    ]  # fmt: skip
    assert found["quantization backend"]["rtn_int4"] == ["rtn", "bits=4", ""]
    assert found["quantization backend"]["fp8"] == [
        "torchao",
        "config=Float8DynamicActivationFloat8WeightConfig, granularity=PerRow",
        "GPU",
    ]
    assert found["quantization backend"]["awq_int4"] == ["checkpoint", "checkpoints of 4 models", "GPU"]
    assert found["corpus kind"]["pile10k_chat"] == ["pile10k", "512", "130,816", "4", "chat template"]


@pytest.mark.parametrize(
    ("arguments", "models", "quantizations"),
    [
        (["-k", "gemma3_12b"], ["gemma3_12b"], ["reference", "int8", "nf4", "fp4"]),
        (["-k", "gemma3_270m-rtn_int4"], ["gemma3_270m"], ["rtn_int4"]),
        (["-k", "tiny and not (nf4 or fp4)"], ["tiny_gemma3"], ["reference", "int8"]),
        (
            ["--models", "gpt2_small,pythia_70m"],
            ["gpt2_small", "pythia_70m"],
            ["reference", "int8", "nf4", "fp4"],
        ),
        (["--quantizations", "rtn_int3"], ["tiny_gemma3", "gemma3_4b", "gemma3_12b"], ["rtn_int3"]),
        (["--models", "qwen3_8b", "--quantizations", "nf4,reference"], ["qwen3_8b"], ["reference", "nf4"]),
    ],
)
def test_list_of_a_selection(run, arguments, models, quantizations):
    status, output, _ = run("list", *arguments)
    found = tables(output)
    assert status == 0
    assert list(found["model source"]) == models
    assert list(found["quantization backend"]) == quantizations


def test_list_with_layers_shows_them_tapped(run):
    _, output, _ = run("list", "--models", "gemma3_4b", "--layers", "every", "--sae-width", "262k")
    found = tables(output)
    assert found["model SAEs"]["gemma3_4b"][:3] == ["gemma-scope-2-4b-pt-res-all", "0–33", "0–33"]
    assert "16k, 262k" in output and "small, big" in output


def test_list_shows_ones_own_entries(run, entries):
    _, output, _ = run("list", "--registry", entries)
    found = tables(output)
    assert found["model source"]["mine"] == ["some/model", "4", "8", "tiny", "CPU"]
    assert found["quantization backend"]["five"] == ["rtn", "bits=5", ""]


# -- plan -------------------------------------------------------------------------------------------


def test_plan_has_every_default_cell(run):
    status, output, _ = run("plan")
    expected = [
        f"{model}-{quantization}"
        for model in ("tiny_gemma3", "gemma3_4b", "gemma3_12b")
        for quantization in ("reference", "int8", "nf4", "fp4")
    ]
    assert status == 0
    assert cells(output) == expected
    assert {row[-1] for row in tables(output)["cell on"].values()} == {"yes"}
    assert output.startswith(
        "this machine: GPUs of 80.0 GiB, 64.0 GiB memory, 500.0 GiB free for downloads"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-k", "gemma3_4b and nf4"], ["gemma3_4b-nf4"]),
        (["-k", "layer24 and int8"], ["gemma3_12b-int8"]),
        (["-k", "gemma2_9b-nf4"], ["gemma2_9b-nf4"]),
        (["--models", "qwen3_8b,gpt2_small", "--quantizations", "nf4"], ["qwen3_8b-nf4", "gpt2_small-nf4"]),
        (["--layers", "every", "--quantizations", "nf4"], ["tiny_gemma3-nf4", "gemma3_4b-nf4", "gemma3_12b-nf4"]),
        (["--layers", "9", "--quantizations", "nf4"], ["gemma3_4b-nf4"]),
        (["--sae-width", "1m", "--quantizations", "nf4"], ["gemma3_4b-nf4", "gemma3_12b-nf4"]),
    ],
)  # fmt: skip
def test_plan_of_a_selection(run, arguments, expected):
    status, output, _ = run("plan", *arguments)
    assert status == 0
    assert cells(output) == expected


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        (["--layers", "all"], "SAEs"), (["--sae-width", "65k"], "SAEs"), (["--batch-size", "64"], "activations"),
        (["--sequence-length", "4096"], "activations"), (["--tokens", "500000"], "store"),
        (["--layers", "every"], "download"),
    ],
)  # fmt: skip
def test_options_reach_the_estimate(run, arguments, column):
    place = ["on", "memory", "weights", "SAEs", "activations", "head", "download", "store"].index(column)

    def value(*more):
        _, output, _ = run("plan", "-k", "gemma3_4b-nf4", *more)
        return float(tables(output)["cell on"]["gemma3_4b-nf4"][place])

    assert value(*arguments) > 1.5 * value()


def test_plan_for_a_cpu(run):
    _, output, _ = run("plan", "-k", "gemma3_4b-reference", "--device", "cpu")
    row = tables(output)["cell on"]["gemma3_4b-reference"]
    assert row[0] == "CPU"
    assert float(row[2]) == pytest.approx(2 * 7.2, abs=0.1), "float32 instead of bf16"


def test_random_weights_are_not_downloaded(run):
    _, output, _ = run("plan", "-k", "gemma3_4b-nf4", "--synthetic")
    assert tables(output)["cell on"]["gemma3_4b-nf4"][6] == "–"


def test_plan_of_an_entry_without_architecture(run, entries):
    status, output, _ = run("plan", "--registry", entries, "--models", "mine", "--quantizations", "five")
    assert status == 0
    assert "mine-five: no estimate: its registry entry has no architecture" in output


def test_the_store_is_looked_for_where_runs_go(run, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(machine, "free_bytes", lambda folder: asked.append(folder) or 500 * 2**30)
    run("plan")
    run("plan", "--qsae-dir", str(tmp_path))
    assert asked[1::2] == [Path(".qsae"), tmp_path]


def test_a_gpu_that_the_driver_reports(capsys, monkeypatch, tmp_path):
    """What the driver says decides whether 12 billion parameters fit."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeDriver(monkeypatch, FakeGpu(16 << 30))
    assert main(["plan", "-k", "gemma3_12b", "--qsae-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("this machine: GPUs of 16.0 GiB")
    assert {row[-1] for row in tables(output)["cell on"].values()} == {"no"}
    said = dict(
        line.split(": ", 1)
        for line in output.splitlines()
        if line.startswith("gemma3_12b-") and ": " in line
    )
    # it would fit, and can't be measured without its reference
    (nf4,) = (why for names, why in said.items() if "gemma3_12b-nf4" in names)
    assert nf4.startswith("memory: its reference needs 27 GiB")
    assert said["gemma3_12b-reference"].startswith("memory: a larger GPU, or several")


# -- what is wrong ----------------------------------------------------------------------------------


OF_A_CORPUS = [
    (["--corpus", "pile10"], "did you mean 'pile10k'?"),
    (["--sequence-length", "1"], "--sequence-length ≥ 2"),
]
WRONG = [
    (["--models", "gema3_12b"], "unknown model 'gema3_12b' (did you mean 'gemma3_12b'?)"),
    (["--quantizations", "nf5"], "unknown quantization 'nf5' (did you mean 'nf4'?)"),
    (["--registry", "nowhere.toml"], "nowhere.toml: can't be read"),
    (
        ["--models", "gemma3_4b", "--layers", "18"],
        "no SAE for layer 18, only for 9, 17, 22, 29; --layers every",
    ),
    (["--models", "gemma3_4b", "--layers", "some"], "--layers 'some': all, every, or numbers"),
    (
        ["--models", "gemma3_4b", "--sae-width", "32k"],
        "--sae-width 32k: its SAEs come in 16k, 65k, 262k, 1m",
    ),
    (
        ["--models", "gemma3_4b", "--sae-l0", "huge"],
        "--sae-l0 huge: its SAEs come in small, medium, big",
    ),
    (["--tokens", "0"], "--tokens 0: at least 1 is needed"),
    (["-k", "nf4 and"], "-k 'nf4 and': Wrong expression passed to '-k': nf4 and: at column 8"),
    (["-k", "tiny(a=1)"], "-k 'tiny(a=1)'"),
    (["-k", "gemma3_13b"], "-k 'gemma3_13b' leaves no cell; models: tiny_gemma3, gemma3_270m"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "part"),
    [("list", *case) for case in WRONG] + [("plan", *case) for case in WRONG + OF_A_CORPUS],
)
def test_one_line_and_status_two(run, command, arguments, part):
    status, output, error = run(command, *arguments)
    assert (status, output) == (2, "")
    assert error.startswith("qsae-bench: ") and len(error.splitlines()) == 1
    assert part in error


@pytest.mark.parametrize(
    "arguments",
    [[], ["plna"], ["plan", "--tokens", "many"], ["plan", "--device", "tpu"], ["list", "--what"]],
)
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
