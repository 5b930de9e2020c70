"""Small random models, SAEs and corpora of real architecture, for tests that need no trained weights."""

from __future__ import annotations

import copy

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from qsae_bench.measure.corpus.packing import Corpus, nothing_dropped
from qsae_bench.measure.evaluation import forward_batches
from qsae_bench.measure.store.entry_writing import ReferencePass
from qsae_bench.models.taps import Head, Subject
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import Cell, CorpusSpec, ModelSpec, QuantizationSpec

LAYERS = (1, 2)
BOS = 2


def gemma3(vocabulary=300, width=48, n_layers=4, seed=0, **config) -> Gemma3ForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": n_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "sliding_window": 16, "bos_token_id": BOS, "eos_token_id": 1, "pad_token_id": 0,
        "layer_types": (["sliding_attention", "full_attention"] * n_layers)[:n_layers],
    }  # fmt: skip
    model = Gemma3ForCausalLM(Gemma3TextConfig(**(settings | config))).eval()
    with torch.no_grad():  # sharper than the default initialisation, so that logits differ
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)
    return model


def damaged(model: Gemma3ForCausalLM, size: float, seed: int = 1) -> Gemma3ForCausalLM:
    """A copy whose decoder weights carry relative noise of ``size``."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            parameter.add_(size * parameter.std() * torch.randn_like(parameter))
    return other


def jumprelu(layer: int, width=48, d_sae=160, seed=0) -> SAE:
    """A random SAE; about a tenth of its features are active."""
    torch.manual_seed(100 + seed + layer)
    sae = SAE.from_dict(JumpReLUSAEConfig(d_in=width, d_sae=d_sae, dtype="float32", device="cpu").to_dict())
    with torch.no_grad():
        sae.W_enc.normal_(std=width**-0.5)
        sae.W_dec.normal_(std=0.3 * d_sae**-0.5)
        sae.b_enc.fill_(-0.8)
        sae.threshold.fill_(0.2)
    sae.eval()
    sae.requires_grad_(False)
    return sae


def corpus(sequences=10, length=24, vocabulary=300, batch_size=4, seed=0) -> Corpus:
    """Random ids, BOS first, two special tokens strewn in so that masks matter."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, vocabulary, size=(sequences, length))
    ids[:, 0] = BOS
    ids[1::3, length // 2] = 1
    spec = CorpusSpec("random", "grammar", length, sequences * (length - 1), 10**6, batch_size)
    valid = ~np.isin(ids, [0, 1, BOS])
    return Corpus(spec, ids, valid, np.arange(sequences), f"random-{seed}", nothing_dropped())


def cell(name="damaged", width=48, n_layers=4) -> Cell:
    model = ModelSpec("stand_in", "./nowhere", n_layers, width, LAYERS, SaeSpec(width, folder="x"), "tiny")
    return Cell(model, QuantizationSpec(name, "none"))


def batches(model, of=None, layers=LAYERS, device="cpu"):
    """Activations of each batch of a corpus, one forward each."""
    with torch.inference_mode():
        yield from forward_batches(Subject(model, torch.device(device)), of or corpus(), layers)


def reference_pass(model, of=None, layers=LAYERS, device="cpu", made_from=None) -> ReferencePass:
    """What a pass of ``model`` over a corpus gives to be stored."""
    of = of or corpus()
    return ReferencePass(
        batches(model, of, layers, device), torch.from_numpy(of.valid), Head.of(model), made_from or {}
    )
