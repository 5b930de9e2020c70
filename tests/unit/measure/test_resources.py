"""Estimates of what a cell takes: each term by hand, laws that they obey, and what is advised."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import corpus_spec
from qsae_bench.machine import Machine
from qsae_bench.measure import resources
from qsae_bench.measure.resources import GIB, Parameters, advice, estimate_need, remedy
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, ModelSpec, QuantizationSpec, Selection
from qsae_bench.report.resource_table import planning

REGISTRY = load_registry()
REFERENCE = QuantizationSpec("reference", "none")
FOUR_BITS = QuantizationSpec("nf4", "transformers", stored_bits=4.5)

SMALL = ModelSpec(
    "small", "some/small", n_layers=3, d_model=16, layers=(0, 2), corpus="tiny",
    sae=SaeSpec(16, release="some", id_template="{layer}", d_sae=100), checkpoint_extra=1000,
    architecture={
        "model_type": "llama", "vocab_size": 1000, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
    },
)  # fmt: skip
CORPUS = corpus_spec(sequence_length=10, batch_size=2, tokens=95)
"""20 positions a batch, 11 sequences"""


def changed(model: ModelSpec = SMALL, **architecture) -> ModelSpec:
    return replace(model, architecture={**model.architecture, **architecture})


# -- parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "blocks", "embedding", "head"),
    [
        # a block: q and o 2 · 16 · 32, k and v 2 · 16 · 16, MLP 3 · 16 · 40
        (SMALL, 3 * (1024 + 512 + 1920), 16000, 16000),
        (changed(tie_word_embeddings=True), 3 * 3456, 16000, 0),
        # no head_dim: 16 / 4; no key heads of their own; no gate: 4 · 16 · 16 + 2 · 16 · 64
        (
            changed(replace(SMALL, architecture={"num_attention_heads": 4, "vocab_size": 10}), model_type="gpt_neox", tie_word_embeddings=False),
            3 * (1024 + 2048), 160, 160,
        ),
        # learned positions besides
        (
            changed(replace(SMALL, architecture={"num_attention_heads": 4, "vocab_size": 10}), model_type="gpt2", tie_word_embeddings=True, max_position_embeddings=7),
            3 * 3072, 160 + 7 * 16, 0,
        ),
    ],
)  # fmt: skip
def test_parameters_by_hand(model, blocks, embedding, head):
    counted = Parameters.of(model)
    assert (counted.blocks, counted.embedding, counted.head) == (blocks, embedding, head)
    assert counted.total == blocks + embedding + head


# -- terms ------------------------------------------------------------------------------------------


def test_reference_on_a_gpu_by_hand():
    found = estimate_need(Cell(SMALL, REFERENCE), CORPUS, on_gpu=True)
    assert found.weights == (10368 + 32000) * 2
    # an SAE: two matrices of float32, and 8 blocks of 8 float64 vectors
    assert found.saes == 2 * (2 * 16 * 100 * 4 + 8 * 8 * 100 * 8)
    # both sides' two taps and head inputs in bf16, then five float32 tensors [20, 100]
    assert found.activations == 2 * 3 * 20 * 16 * 2 + 5 * 20 * 100 * 4
    assert found.head_chunk == 5 * 20 * 1000 * 4
    assert found.libraries == 0
    assert found.download == 2 * (42368 + 1000) + 2 * (2 * 16 * 100 * 4)
    # two taps and the head input of eleven whole sequences, and the head itself
    assert found.store == 3 * 110 * 16 * 2 + 1000 * 16 * 2
    assert found.memory == 84736 + 128000 + 400000


def test_four_bits_on_a_cpu_by_hand():
    narrow = replace(SMALL, sae=replace(SMALL.sae, d_sae=10))
    found = estimate_need(Cell(narrow, FOUR_BITS), CORPUS, on_gpu=False)
    assert found.weights == 10368 * 4.5 / 8 + 32000 * 4
    assert found.saes == 2 * (1280 + 5120)
    # a block: four residuals and three of the MLP's in float32, and one of its weights unpacked
    assert found.activations == 2 * 3 * 20 * 16 * 4 + 20 * 4 * (4 * 16 + 3 * 40) + 16 * 40 * 4
    assert found.libraries == 1.1 * GIB // 1
    assert found.store == 3 * 110 * 16 * 4 + 1000 * 16 * 4
    assert found.memory == 133832 + 12800 + 400000 + found.libraries


@pytest.mark.parametrize(
    ("vocabulary", "on_gpu", "positions"),
    [
        (262144, True, 256),  # 256 MiB of logits
        (262144, False, 64),  # 64 MiB
        (32768, False, 64),  # at least 64 positions
        (1024, False, 1024),  # 4 MiB
        (16, True, 2048),  # no more than there are
    ],
)
def test_the_heads_chunk_is_bounded(vocabulary, on_gpu, positions):
    corpus = corpus_spec(sequence_length=512, batch_size=4)
    found = estimate_need(Cell(changed(vocab_size=vocabulary), REFERENCE), corpus, on_gpu)
    assert found.head_chunk == 5 * positions * vocabulary * 4


@pytest.mark.parametrize(
    ("changes", "model_bytes", "sae_bytes"),
    [
        ({}, 86736, 25600),
        ({"source": "/weights"}, 0, 25600),
        ({"sae": replace(SMALL.sae, release=None, folder="/saes")}, 86736, 0),
        ({"source": "./weights", "sae": replace(SMALL.sae, release=None, folder="/saes")}, 0, 0),
        ({"synthetic": True}, 0, 0),
    ],
)
def test_only_what_comes_from_the_hub_is_downloaded(changes, model_bytes, sae_bytes):
    found = estimate_need(Cell(replace(SMALL, **changes), REFERENCE), CORPUS, on_gpu=True)
    assert found.download == model_bytes + sae_bytes


@pytest.mark.slow
def test_weights_saes_and_store_are_those_of_a_real_pass(tmp_path):
    """A Gemma 3 of 18M parameters on the CPU: bytes of its tensors, and of the reference on disk."""
    import stand_ins
    from qsae_bench.measure.store.local import LocalStore

    real = stand_ins.gemma3(vocabulary=8000, width=256, n_layers=4)
    config = real.config
    shapes = ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    model = ModelSpec(
        "mine", "./mine", config.num_hidden_layers, config.hidden_size, (1, 2), SaeSpec(256, folder="x", d_sae=640),
        "tiny", architecture={"model_type": "gemma3_text", "tie_word_embeddings": True}
        | {name: getattr(config, name) for name in shapes},
    )  # fmt: skip
    corpus = stand_ins.corpus(32, 64, 8000)
    estimate = estimate_need(Cell(model, REFERENCE), corpus.spec, on_gpu=False)

    def size(module):
        return sum(parameter.nbytes for parameter in module.parameters())

    assert estimate.weights == pytest.approx(size(real), rel=0.01)
    sums = 2 * 8 * 8 * 640 * 8
    saes = [stand_ins.jumprelu(layer, width=256, d_sae=640) for layer in model.layers]
    assert estimate.saes == pytest.approx(sum(map(size, saes)) + sums, rel=0.02)
    LocalStore(tmp_path, 1 << 40).write("key", stand_ins.reference_pass(real, corpus, model.layers))
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert estimate.store == pytest.approx(on_disk, rel=0.02)


# -- laws -------------------------------------------------------------------------------------------

small = st.integers(1, 12)
sizes = st.fixed_dictionaries(
    {"layers": small, "width": st.integers(1, 5000), "batch": small, "tokens": st.integers(1, 10**6), "length": st.integers(2, 600)}
)  # fmt: skip


def estimate_of(numbers, quantization=REFERENCE, on_gpu=True, model=SMALL):
    deep = replace(
        model, n_layers=12, layers=tuple(range(numbers["layers"])), sae=replace(model.sae, d_sae=numbers["width"])
    )  # fmt: skip
    corpus = corpus_spec(
        sequence_length=numbers["length"], batch_size=numbers["batch"], tokens=numbers["tokens"]
    )
    return estimate_need(Cell(deep, quantization), corpus, on_gpu)


@given(
    sizes,
    st.sampled_from(["layers", "width", "batch", "tokens"]),
    small,
    st.booleans(),
    st.sampled_from([REFERENCE, FOUR_BITS]),
)
def test_more_never_takes_less(numbers, key, more, on_gpu, quantization):
    larger = {**numbers, key: min(numbers[key] + more, 12) if key == "layers" else numbers[key] + more}
    before, after = (estimate_of(n, quantization, on_gpu) for n in (numbers, larger))
    for term in ("memory", "store", "download", "weights", "saes", "activations", "head_chunk"):
        assert getattr(after, term) >= getattr(before, term), term


@given(sizes, st.booleans())
def test_memory_does_not_grow_with_tokens(numbers, on_gpu):
    assert (
        estimate_of(numbers, on_gpu=on_gpu).memory
        == estimate_of({**numbers, "tokens": 10**9}, on_gpu=on_gpu).memory
    )


@given(sizes, st.floats(1, 31), st.floats(0.1, 8))
def test_fewer_bits_never_weigh_more(numbers, bits, more):
    fewer, wider = (QuantizationSpec("q", "rtn", stored_bits=b) for b in (bits, min(bits + more, 32)))
    found = [
        estimate_of(numbers, quantization, on_gpu=False).weights
        for quantization in (fewer, wider, REFERENCE)
    ]
    assert found == sorted(found)


@given(sizes, st.booleans())
def test_every_term_counts_and_none_is_negative(numbers, on_gpu):
    found = estimate_of(numbers, on_gpu=on_gpu)
    assert (
        min(found.weights, found.saes, found.activations, found.head_chunk, found.download, found.store) > 0
    )
    assert found.memory >= found.weights + found.saes


@pytest.mark.parametrize("name", [model.name for model in REGISTRY.models.values() if model.needs_gpu])
def test_quantizing_a_large_model_takes_less(name):
    model = REGISTRY.model(name)
    corpus = REGISTRY.corpus_of(model, Selection())
    reference, int8, nf4 = (
        estimate_need(Cell(model, REGISTRY.quantization(quantization)), corpus, on_gpu=True)
        for quantization in ("reference", "int8", "nf4")
    )
    assert nf4.memory < int8.memory < reference.memory
    assert nf4.store == reference.store, "one reference serves every cell"
    assert nf4.download == reference.download


# -- advice -----------------------------------------------------------------------------------------

BIG = 1000 * GIB
PLENTY = Machine((80 * GIB,), BIG, BIG, BIG)
FOUR_B = REGISTRY.model("gemma3_4b")
PILE = REGISTRY.corpus("pile10k")


def cell_of(model=FOUR_B, quantization="reference", **choice) -> Cell:
    return Cell(model.with_layers(**({"choice": ""} | choice)), REGISTRY.quantization(quantization))


def advised(cell, machine, corpus=PILE, on_gpu=True) -> str:
    return advice(cell, estimate_need(cell, corpus, on_gpu), corpus, machine, on_gpu)


def test_what_fits_needs_no_advice():
    assert advised(cell_of(), PLENTY) == ""


@pytest.mark.parametrize(
    ("planned", "gib"),
    [
        (cell_of(), 11),  # the entry's own, with room
        (cell_of(quantization="nf4"), 11),  # its reference has to be measured there as well
        (cell_of(choice="every"), 20),  # weights 7.2, 34 SAEs of 0.32, 1.3 of activations
        (cell_of(REGISTRY.model("gemma3_27b"), choice="every"), 95),  # above the entry's 58
        (Cell(SMALL, REFERENCE), 1),
    ],
)
def test_no_gpu(planned, gib):
    assert (
        advised(planned, replace(PLENTY, gpu_bytes=()))
        == f"no GPU here: one with {gib} GiB, or --device cpu (slow)"
    )


def test_a_missing_gpu_does_not_matter_on_a_cpu():
    assert advised(cell_of(), replace(PLENTY, gpu_bytes=()), on_gpu=False) == ""


def test_several_gpus_count_together():
    cell = cell_of(REGISTRY.model("gemma3_27b"))
    assert advised(cell, replace(PLENTY, gpu_bytes=(24 * GIB,) * 2)) != ""
    assert advised(cell, replace(PLENTY, gpu_bytes=(24 * GIB,) * 3)) == ""


def test_disks():
    short = replace(PLENTY, cache_free_bytes=GIB, runs_free_bytes=GIB)
    download = "disk for the download: move the cache with HF_HOME"
    store = "disk for the reference: fewer --tokens, or another --qsae-dir"
    assert advised(cell_of(), replace(PLENTY, cache_free_bytes=GIB)) == download
    assert advised(cell_of(), replace(PLENTY, runs_free_bytes=GIB)) == store
    assert advised(cell_of(), short) == f"{download}; {store}"
    assert advised(cell_of(), replace(short, gpu_bytes=(GIB,))).startswith("memory: a larger GPU")
    assert advised(cell_of(), replace(short, gpu_bytes=(GIB,))).endswith(f"; {download}; {store}")


@pytest.mark.parametrize(
    ("planned", "corpus", "gib", "on_gpu", "advice_given"),
    [
        (cell_of(), replace(PILE, batch_size=64), 9, True, "memory: --batch-size 1 (not 64)"),
        (cell_of(choice="every"), PILE, 9, True, "memory: fewer --layers a run, and --batch-size 1"),
        (cell_of(width="1m"), PILE, 12, True, "memory: a narrower --sae-width, and --batch-size 1"),
        (cell_of(), PILE, 6, True, "memory: a larger GPU, or several: without an SAE it takes 8.5 GiB"),
        (cell_of(), PILE, 6, False, "memory: more memory: without an SAE it takes 15.9 GiB"),
    ],
)
def test_memory_by_what_would_help(planned, corpus, gib, on_gpu, advice_given):
    machine = replace(PLENTY, gpu_bytes=(gib * GIB,), memory_bytes=gib * GIB)
    assert advised(planned, machine, corpus, on_gpu) == advice_given


def test_a_smaller_batch_is_not_advised_where_it_frees_nothing():
    """On a GPU the head's chunk of a large vocabulary outweighs the batch, and does not shrink with it."""
    cell = cell_of()
    whole = estimate_need(cell, PILE, on_gpu=True)
    assert estimate_need(cell, replace(PILE, batch_size=1), on_gpu=True).memory == whole.memory
    assert "--batch-size 1 (" not in remedy(cell, PILE, whole, whole.memory - 1)


@example("", "nf4", 1, 5.4453125, False)  # within a hundredth of a GiB of what it takes without an SAE
@given(
    st.sampled_from(["", "all", "every"]), st.sampled_from(["reference", "nf4"]), st.sampled_from([1, 4, 64]),
    st.floats(0.1, 40), st.booleans(),
)  # fmt: skip
def test_what_is_advised_would_fit(choice, quantization, batch, gib, on_gpu):
    """Whatever the machine: the change named brings the estimate under what it has."""
    cell, corpus, have = (
        cell_of(choice=choice, quantization=quantization),
        replace(PILE, batch_size=batch),
        int(gib * GIB),
    )
    estimate = estimate_need(cell, corpus, on_gpu)
    if estimate.memory <= have:
        return
    single = replace(corpus, batch_size=1)
    one_layer = replace(cell, model=replace(cell.model, layers=(17,)))
    found = remedy(cell, corpus, estimate, have)
    if found.startswith("--batch-size 1"):
        assert estimate_need(cell, single, on_gpu).memory <= have
    elif found.startswith("fewer --layers"):
        assert estimate_need(one_layer, single, on_gpu).memory <= have
    else:
        assert estimate_need(one_layer, single, on_gpu).memory > have
        least = replace(one_layer, model=replace(one_layer.model, sae=replace(cell.model.sae, d_sae=1)))
        bare = estimate_need(least, single, on_gpu)  # of one feature, whose own bytes are then taken off
        assert found.startswith("a narrower") == (bare.memory - bare.saes <= have)


# -- the table --------------------------------------------------------------------------------------


def table(corpora, machine=PLENTY, device="") -> dict[str, list[str]]:
    """The first column -> the others."""
    lines = list(planning(corpora, machine, device))
    start = next(index for index, line in enumerate(lines) if line.startswith("---"))
    rows = [line.split() for line in lines[start + 1 : lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_a_row_says_what_was_estimated():
    cell = cell_of()
    found = estimate_need(cell, PILE, on_gpu=True)
    terms = (
        found.memory,
        found.weights,
        found.saes,
        found.activations,
        found.head_chunk,
        found.download,
        found.store,
    )
    row = table({cell: PILE})["gemma3_4b-reference"]
    assert row == ["GPU", *(f"{term / GIB:.1f}" for term in terms), "yes"]
    assert math.isclose(float(row[1]), 8.8)


@pytest.mark.parametrize(
    ("model", "machine", "device", "place"),
    [
        ("gemma3_4b", PLENTY, "", "GPU"),
        ("gemma3_4b", PLENTY, "cpu", "CPU"),
        ("gemma3_4b", replace(PLENTY, gpu_bytes=()), "", "GPU"),
        ("tiny_gemma3", PLENTY, "", "GPU"),
        ("tiny_gemma3", replace(PLENTY, gpu_bytes=()), "", "CPU"),
        ("tiny_gemma3", replace(PLENTY, gpu_bytes=()), "cuda", "GPU"),
    ],
)
def test_where_a_cell_is_planned(model, machine, device, place):
    cell = cell_of(REGISTRY.model(model))
    assert table({cell: PILE}, machine, device)[cell.id][0] == place


def test_no_architecture_no_estimate():
    bare = Cell(replace(SMALL, architecture={}), REFERENCE)
    lines = list(planning({bare: CORPUS, cell_of(): PILE}, PLENTY))
    assert "small-reference: no estimate: its registry entry has no architecture" in lines
    assert not any(line.startswith("small-reference ") for line in lines)
    assert "small-reference: no estimate" in "\n".join(planning({bare: CORPUS}, PLENTY))


def test_the_first_line_is_the_machine():
    first = next(planning({cell_of(): PILE}, Machine((80 * GIB, 24 * GIB), 64 * GIB, 30 * GIB, GIB // 2)))
    assert first == (
        "this machine: GPUs of 80.0, 24.0 GiB, 64.0 GiB memory, 30.0 GiB free for downloads, 0.5 GiB for the"
    )
    assert "no GPU" in next(planning({cell_of(): PILE}, replace(PLENTY, gpu_bytes=())))


# -- at once ----------------------------------------------------------------------------------------

PROBE = """
import sys
from qsae_bench.app.cli.main import main
status = main(sys.argv[1:])
print(f"PROBE {status} {sorted({'torch', 'sae_lens', 'transformers', 'datasets'} & set(sys.modules))}")
"""


def processor_seconds(*command: str) -> tuple[float, str]:
    """Return the processor time of a Python process and the last line that it printed."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", *command], capture_output=True, text=True, timeout=60, check=True
    )
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, done.stdout.splitlines()[-1] if done.stdout else done.stderr


@pytest.mark.parametrize(
    ("arguments", "times"),
    [(["list"], 4), (["plan"], 4), (["plan", "-k", "gemma3_27b", "--layers", "every"], 8)],
    ids=str,
)
def test_answers_at_once_without_torch(arguments, times):
    """In a few times what the imports of numpy, pydantic and pytest take; torch alone takes more.

    The less of two in turns: the machine may be busy.
    """
    ours, imports = [], []
    for _ in range(2):
        imports.append(processor_seconds("import numpy, pydantic, pytest")[0])
        seconds, last = processor_seconds(PROBE, *arguments)
        assert last == "PROBE 0 []"
        ours.append(seconds)
    assert min(ours) < times * min(imports)


def test_constants_are_those_of_the_pass():
    """The plan reads sizes from the code that allocates: a change there must change the plan."""
    from qsae_bench.metrics import features

    assert (resources.BLOCKS, resources.VECTORS) == (features.BLOCKS, features.VECTORS)
    assert (len(resources.VECTORS), resources.BLOCKS) == (8, 8)
