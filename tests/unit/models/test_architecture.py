"""Built-in architectures are the real ones: against transformers' classes and published sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from qsae_bench.measure import resources
from qsae_bench.models.architecture import synthetic_config
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, Selection

REGISTRY = load_registry()
MODELS = list(REGISTRY.models.values())
RELEASED = [model for model in MODELS if model.sae.release is not None]


def by_name(models):
    return pytest.mark.parametrize("model", models, ids=[model.name for model in models])


PARAMETERS = {
    "google/gemma-3-270m": 268.1, "google/gemma-3-270m-it": 268.1,
    "google/gemma-3-1b-pt": 999.9, "google/gemma-3-1b-it": 999.9,
    "google/gemma-3-4b-pt": 3880.3, "google/gemma-3-4b-it": 3880.3,
    "google/gemma-3-12b-pt": 11766.0, "google/gemma-3-12b-it": 11766.0,
    "google/gemma-3-27b-pt": 27009.3, "google/gemma-3-27b-it": 27009.3,
    "google/gemma-2-2b": 2614.3, "google/gemma-2-9b": 9241.7,
    "meta-llama/Llama-3.1-8B": 8030.3, "Qwen/Qwen3-1.7B-Base": 1720.6, "Qwen/Qwen3-8B-Base": 8190.7,
    "openai-community/gpt2": 124.4, "EleutherAI/pythia-70m-deduped": 70.4,
}  # fmt: skip
"""millions, as published; of a multimodal model the text decoder's"""


CHECKPOINTS = {
    "google/gemma-3-4b": 4_300_079_472,
    "google/gemma-3-12b": 12_187_325_040,
    "google/gemma-3-27b": 27_432_406_640,
}
"""parameters by the safetensors of the hub's model pages, vision tower included"""


@pytest.fixture(scope="module")
def on_meta():
    """name -> the architecture without memory for its weights."""
    built = {}

    def build(model):
        if model.name not in built:
            config = synthetic_config(model)
            with torch.device("meta"):
                built[model.name] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config)
        return built[model.name]

    return build


@by_name(MODELS)
def test_parameters_are_the_real_architectures(model, on_meta):
    counted, real = resources.Parameters.of(model), on_meta(model)
    blocks = getattr(real.get_decoder(), "layers", None) or real.get_decoder().h
    assert len(blocks) == model.n_layers
    linear = [m.weight for m in blocks.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert counted.blocks == sum(weight.numel() for weight in linear)
    matrices = [parameter for parameter in real.parameters() if parameter.ndim > 1]
    assert counted.total == sum(matrix.numel() for matrix in matrices), "all but norms and biases"
    own_head = real.get_output_embeddings().weight is not real.get_input_embeddings().weight
    assert counted.head == (real.get_output_embeddings().weight.numel() if own_head else 0)


@by_name(RELEASED)
def test_parameters_are_those_published(model, on_meta):
    assert model.source in PARAMETERS
    published = PARAMETERS[model.source] * 1e6
    assert sum(p.numel() for p in on_meta(model).parameters()) == pytest.approx(published, rel=1e-3)
    assert resources.Parameters.of(model).total == pytest.approx(published, rel=1e-3)


@by_name([model for model in RELEASED if model.source.rpartition("-")[0] in CHECKPOINTS])
def test_the_vision_tower_is_part_of_the_download(model, on_meta):
    text = sum(parameter.numel() for parameter in on_meta(model).parameters())
    assert text + model.checkpoint_extra == pytest.approx(
        CHECKPOINTS[model.source.rpartition("-")[0]], rel=1e-3
    )


@by_name([model for model in RELEASED if model.source.rpartition("-")[0] not in CHECKPOINTS])
def test_a_text_model_has_no_extra_to_download(model):
    assert model.checkpoint_extra == 0


@by_name([model for model in MODELS if model.needs_gpu])
def test_min_gpu_memory_holds_the_reference_with_room(model):
    cell = Cell(model, REGISTRY.quantization("reference"))
    estimate = (
        resources.estimate_need(cell, REGISTRY.corpus_of(model, Selection()), on_gpu=True).memory
        / resources.GIB
    )
    assert estimate <= model.min_gpu_gib <= 1.35 * estimate + 1


@by_name([model for model in MODELS if not model.needs_gpu])
def test_what_needs_no_gpu_fits_a_laptop(model):
    cell = Cell(model, REGISTRY.quantization("reference"))
    assert (
        resources.estimate_need(cell, REGISTRY.corpus_of(model, Selection()), on_gpu=False).memory
        < 12 * resources.GIB
    )
