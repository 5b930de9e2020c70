"""Estimate what a cell will take, from the registry alone: memory, download, store. No torch, no download.

Each term is the size of a tensor that the pass holds; only what a CPU's process takes beside them was
measured (``LIBRARIES_BYTES``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qsae_bench.machine import Machine
from qsae_bench.metrics.features import BLOCKS, VECTORS
from qsae_bench.metrics.loss import chunk_positions
from qsae_bench.registry.specs import Cell, CorpusSpec, ModelSpec, local_folder

GIB = 2**30
FLOAT32, FLOAT64 = 4, 8

LIBRARIES_BYTES = int(1.1 * GIB)
"""resident set of a process that has imported torch, transformers, bitsandbytes and sae-lens (0.8 to 0.95),
and the gaps that a pass leaves in its heap; on a CPU only, where memory is the resident set"""

HUB_SAE_BYTES = FLOAT32
"""bytes of one number of an SAE in its release; some releases store half of that"""

LOGIT_COPIES = 5
"""temporaries of one chunk of logits that live at once, see metrics/loss.py"""

ENCODE_COPIES = 3
"""tensors [positions, d_sae] at once on top of both sides' features: pre-activations, mask, product"""


@dataclass(frozen=True)
class Parameters:
    """Count a decoder's parameters, without norms and biases."""

    blocks: int
    """weights of linear layers in decoder blocks, which are what gets quantized"""
    embedding: int
    head: int
    """0 where it is the embedding"""

    @classmethod
    def of(cls, model: ModelSpec) -> Parameters:
        """Count from the architecture: attention projections, MLP (three matrices where gated),
        embeddings."""
        a, d = model.architecture, model.d_model
        heads = int(a["num_attention_heads"])
        head_dim = int(a.get("head_dim", d // heads))
        keys = int(a.get("num_key_value_heads", heads))
        inner = int(a.get("intermediate_size", 4 * d))
        gated = a["model_type"] not in ("gpt2", "gpt_neox")
        block = 2 * d * head_dim * (heads + keys) + (3 if gated else 2) * d * inner
        embedding = int(a["vocab_size"]) * d
        learned = int(a.get("max_position_embeddings", 1024)) * d if a["model_type"] == "gpt2" else 0
        return cls(
            model.n_layers * block, embedding + learned, 0 if a["tie_word_embeddings"] else embedding
        )

    @property
    def total(self) -> int:
        """all parameters"""
        return self.blocks + self.embedding + self.head


@dataclass(frozen=True)
class ResourceNeed:
    """Hold estimates in bytes for one cell that is measured in one process."""

    weights: int
    saes: int
    activations: int
    """the larger of a block's forward and the SAEs' features, with what is held beside them"""
    head_chunk: int
    libraries: int
    download: int
    """files of the model and the SAEs, if nothing is cached"""
    store: int
    """the model's reference on disk, which every cell of the model uses"""

    @property
    def memory(self) -> int:
        """peak of the pass; the head's chunks and the activations are not held at the same time"""
        return self.weights + self.saes + max(self.activations, self.head_chunk) + self.libraries


def estimate_need(cell: Cell, corpus: CorpusSpec, on_gpu: bool) -> ResourceNeed:
    """Estimate what a cell takes whose model has its architecture in the registry.

    ``corpus`` is as it will be run, with the options of the command line.
    """
    model = cell.model
    a, d, width = model.architecture, model.d_model, model.sae.features
    number = 2 if on_gpu else FLOAT32
    count = Parameters.of(model)
    bits = cell.quantization.stored_bits or 8 * number
    checkpoint = cell.checkpoint
    unpacked = checkpoint is not None and checkpoint.file is not None  # a GGUF is dequantized on loading
    held_bits = 8 * number if unpacked else bits
    weights = count.blocks * held_bits // 8 + (count.embedding + count.head) * number
    positions = corpus.batch_size * corpus.sequence_length
    layers = len(model.layers)

    sae = 2 * d * width * FLOAT32
    sums = BLOCKS * len(VECTORS) * width * FLOAT64
    held = positions * d * number * 2 * (layers + 1)  # both sides' taps and head inputs
    inner = int(a.get("intermediate_size", 4 * d))
    forward = positions * number * (4 * d + 3 * inner)
    if held_bits != 8 * number:  # a layer's weight is unpacked for its product
        forward += d * inner * number
    features = positions * width * FLOAT32 * (2 + ENCODE_COPIES)
    vocabulary = int(a["vocab_size"])
    chunk = min(chunk_positions(vocabulary, on_gpu), positions)
    sequences = -(-corpus.tokens // (corpus.sequence_length - 1))
    store = sum(store_bytes(model, sequences * corpus.sequence_length, on_gpu))
    remote = local_folder(cell.published.source) is None and not model.synthetic
    released = model.sae.release is not None and not model.synthetic
    return ResourceNeed(
        weights=int(weights),
        saes=layers * (sae + sums),
        activations=held + max(forward, features),
        head_chunk=LOGIT_COPIES * chunk * vocabulary * FLOAT32,
        libraries=0 if on_gpu else LIBRARIES_BYTES,
        download=remote * weight_file_bytes(cell) + released * layers * sae // FLOAT32 * HUB_SAE_BYTES,
        store=store,
    )


def weight_file_bytes(cell: Cell) -> int:
    """Return the size of the weights' files that a cell is loaded from: the model's own in 16 bits, or its
    checkpoint's."""
    count, checkpoint = Parameters.of(cell.model), cell.checkpoint
    extra = cell.model.checkpoint_extra
    if checkpoint is None:
        return 2 * (count.total + extra)
    bits = cell.quantization.stored_bits or 16
    return int(count.blocks * bits // 8) + 2 * (count.total - count.blocks + extra)


def store_bytes(model: ModelSpec, positions: int, on_gpu: bool) -> tuple[int, int]:
    """Return the size on disk of a reference of so many positions: of its taps and head inputs, and of its
    head."""
    number = 2 if on_gpu else FLOAT32
    bytes_a_position = (len(model.layers) + 1) * model.d_model * number
    return positions * bytes_a_position, int(model.architecture["vocab_size"]) * model.d_model * number


def advice(cell: Cell, estimate: ResourceNeed, corpus: CorpusSpec, machine: Machine, on_gpu: bool) -> str:
    """Return '' if the cell fits this machine, else what is short and what to change."""
    if cell.quantization.checkpoints and cell.checkpoint is None:
        return "no checkpoint of this model in the entry"
    if on_gpu and not machine.gpu_bytes:
        enough = max(cell.model.min_gpu_gib, math.ceil(estimate.memory / GIB))
        return f"no GPU here: one with {enough:g} GiB, or --device cpu (slow)"
    short = []
    have = sum(machine.gpu_bytes) if on_gpu else machine.memory_bytes
    if estimate.memory > have:
        short.append(f"memory: {remedy(cell, corpus, estimate, have)}")
    elif on_gpu and cell.model.min_gpu_gib * GIB > have:
        short.append(f"memory: its reference needs {cell.model.min_gpu_gib:g} GiB")
    if estimate.download > machine.cache_free_bytes:
        short.append("disk for the download: move the cache with HF_HOME")
    if estimate.store > machine.runs_free_bytes:
        short.append("disk for the reference: fewer --tokens, or another --qsae-dir")
    return "; ".join(short)


def shortage_message(cell: Cell, corpus: CorpusSpec, machine: Machine, on_gpu: bool) -> str:
    """Describe what a cell that ran out of memory needed, by estimate, and what there is."""
    have = sum(machine.gpu_bytes) if on_gpu else machine.memory_bytes
    line = f"{cell.id}: out of {'GPU ' if on_gpu else ''}memory"
    if not cell.model.architecture:
        return f"{line}: {have / GIB:.1f} GiB are here; try --batch-size 1"
    estimate = estimate_need(cell, corpus, on_gpu)
    needed = f"needs about {estimate.memory / GIB:.1f} GiB"
    return f"{line}: {needed}, {have / GIB:.1f} GiB are here; try {remedy(cell, corpus, estimate, have)}"


def remedy(cell: Cell, corpus: CorpusSpec, estimate: ResourceNeed, have: int) -> str:
    """Return the smallest change that makes the cell fit; where none does, the machine that it takes."""
    on_gpu = not estimate.libraries
    single = replace(corpus, batch_size=1)
    if corpus.batch_size > 1 and estimate_need(cell, single, on_gpu).memory <= have:
        return f"--batch-size 1 (not {corpus.batch_size})"
    one_layer = replace(cell, model=replace(cell.model, layers=cell.model.layers[:1]))
    least = estimate_need(one_layer, single, on_gpu)
    if len(cell.model.layers) > 1 and least.memory <= have:
        return "fewer --layers a run, and --batch-size 1"
    bare = least.weights + least.head_chunk + least.libraries
    if bare <= have:
        return "a narrower --sae-width, and --batch-size 1"
    larger = "a larger GPU, or several" if on_gpu else "more memory"
    return f"{larger}: without an SAE it takes {bare / GIB:.1f} GiB"
