"""bits_per_weight and weight_bytes against what each format stores, computed by hand."""

from __future__ import annotations

import pytest
import torch

from builders import needs
from qsae_bench.models.architecture import decoder_shapes
from qsae_bench.models.loading import load
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights import storage
from qsae_bench.models.weights.storage import weight_bytes
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, QuantizationSpec


@pytest.fixture(scope="module")
def tiny():
    return load_registry().model("tiny_gemma3")


@pytest.fixture(scope="module")
def shapes(tiny):
    """(out, in) of the decoder's linear layers, and the elements of everything else."""
    model = load(Cell(tiny, QuantizationSpec("reference", "none")), "cpu", torch.float32).model
    linear = [
        m.weight.shape for b in decoder_layers(model) for m in b.modules() if isinstance(m, torch.nn.Linear)
    ]
    others = sum(p.numel() for p in model.parameters()) - sum(o * i for o, i in linear)
    return linear, others


def sizes(model, backend, **options):
    """(bits a weight, bytes in all) as the suite counts them."""
    loaded = load(Cell(model, QuantizationSpec("mine", backend, options)), "cpu", torch.float32).model
    stored = storage.stored_matrices(loaded, decoder_shapes(model))
    return storage.bits_per_weight(stored), weight_bytes(loaded)


def expected(shapes, bits_of):
    """The same from a format's bits of one [out, in] matrix; norms and embeddings stay float32."""
    linear, others = shapes
    bits = sum(bits_of(o, i) for o, i in linear)
    return bits / sum(o * i for o, i in linear), pytest.approx(bits / 8 + 4 * others)


def test_reference(tiny, shapes):
    assert sizes(tiny, "none") == expected(shapes, lambda o, i: 32 * o * i)


def test_int8(tiny, shapes):
    # one byte a weight, one float32 scale a row
    found = sizes(tiny, "transformers", quant_method="bitsandbytes", load_in_8bit=True)
    assert found == expected(shapes, lambda o, i: o * i * 8 + o * 32)


@pytest.mark.parametrize("double", [False, True])
def test_nf4(tiny, shapes, double):
    def bits(out, width):
        blocks = -(-out * width // 64)
        packed = out * width * 4 + 16 * 32  # and a codebook of 16 floats
        if double:  # absmax in 8 bits, its own float32 absmax a 256 blocks, codebook of 256, one offset
            return packed + blocks * 8 + -(-blocks // 256) * 32 + 256 * 32 + 32
        return packed + blocks * 32

    found = sizes(
        tiny, "transformers", quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
    )  # fmt: skip
    assert found == expected(shapes, bits)


@pytest.mark.parametrize(("group", "symmetric"), [(0, True), (64, True), (64, False), (0, False)])
def test_rtn_says_what_a_packed_form_would_store(tiny, shapes, group, symmetric):
    def bits(out, width):
        groups = out * width // (group or width)
        return out * width * 4 + groups * (16 if symmetric else 20)

    found = sizes(tiny, "rtn", bits=4, group_size=group, symmetric=symmetric)
    assert found[0] == expected(shapes, bits)[0]
    assert found[1] == expected(shapes, lambda o, i: 32 * o * i)[1]  # it keeps floats


@needs("hqq")
@pytest.mark.parametrize(
    ("nbits", "packed"), [(4, lambda n: n * 4), (3, lambda n: -(-(n // 64) // 10) * 64 * 32)]
)
def test_hqq(tiny, shapes, nbits, packed):
    # groups of 64: a float32 scale and zero each; three bits are packed ten to an int32, along the groups
    found = sizes(tiny, "hqq", nbits=nbits, group_size=64, axis=1)
    assert found == expected(shapes, lambda o, i: packed(o * i) + o * i // 64 * 64)


@needs("optimum.quanto")
def test_quanto(tiny, shapes):
    # a float32 scale a row, and one each for the input's and output's activations, kept though unused
    found = sizes(tiny, "quanto", weights="qint8")
    assert found == expected(shapes, lambda o, i: o * i * 8 + o * 32 + 64)


THROUGH_TRANSFORMERS = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
}


@needs("torchao")
@pytest.mark.parametrize(
    ("backend", "options"),
    [("torchao", {"config": "Int8WeightOnlyConfig"}), ("transformers", THROUGH_TRANSFORMERS)],
)
def test_torchao(tiny, shapes, backend, options):
    # a float32 scale and an int8 zero point a row
    found = sizes(tiny, backend, **options)
    assert found == expected(shapes, lambda o, i: o * i * 8 + o * 40)


def test_a_head_and_an_embedding_that_are_one_count_once(tiny, shapes):
    model = load(Cell(tiny, QuantizationSpec("reference", "none")), "cpu", torch.float32).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert weight_bytes(model) == 4 * sum(p.numel() for p in model.parameters())


# -- formats that nobody told us of ------------------------------------------------------------------


class Wrapped(torch.nn.Module):
    """Someone's own layer: packed weights as a buffer, scales in an object, a bias and a cache beside."""

    class State:
        def __init__(self, scale):
            self.scale = scale
            self.note = "per row"

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1) / 127
        self.register_buffer("codes", (linear.weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("cache", torch.zeros(1000), persistent=False)
        self.state = self.State(scale)
        self.bias = torch.nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, x):
        return x @ (self.codes * self.state.scale[:, None]).T


def replaced(model, made):
    from qsae_bench.models.backends import replace_linears

    loaded = load(Cell(model, QuantizationSpec("reference", "none")), "cpu", torch.float32).model
    return replace_linears(loaded, made)


def test_an_unknown_layer_is_counted_by_the_tensors_that_it_keeps(tiny, shapes):
    linear, others = shapes
    model = replaced(tiny, Wrapped)
    stored = storage.stored_matrices(model, decoder_shapes(tiny))
    bits = sum(o * i * 8 + o * 32 for o, i in linear)
    assert storage.bits_per_weight(stored) == bits / sum(o * i for o, i in linear)
    assert not any(one.floats for one in stored)
    assert weight_bytes(model) == bits / 8 + 4 * others + 4 * sum(o for o, _ in linear)  # with its biases


def test_merged_layers_count_together(tiny, shapes):
    """Query, key and value as one packed matrix, as serving kernels want them."""

    class Merged(torch.nn.Module):
        def __init__(self, attention):
            super().__init__()
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            self.register_buffer("packed", torch.cat([p.weight for p in parts]).to(torch.int8))

    model = load(Cell(tiny, QuantizationSpec("reference", "none")), "cpu", torch.float32).model
    for block in decoder_layers(model):
        block.self_attn.qkv = Merged(block.self_attn)
        del block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj
    stored = storage.stored_matrices(model, decoder_shapes(tiny))
    merged = [one for one in stored if len(one.paths) == 3]
    assert len(merged) == len(decoder_layers(model))
    assert {one.bits for one in merged} == {8 * (192 + 96 + 96) * 192}
    assert sum(one.elements for one in stored) == sum(o * i for o, i in shapes[0])
