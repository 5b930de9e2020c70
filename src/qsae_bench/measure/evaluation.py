"""One pass over a cell: batches -> taps -> metrics -> Measurement.

The reference's activations come from the store; the cell's own come from one forward pass a batch.
For the reference cell both are the store's, so a reference against itself differs by exactly 0 and a
warm store needs no forward at all. Nothing in the loop waits for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qsae_bench.metrics import loss, reconstruction, residual
from qsae_bench.metrics.base import Gathered, at_least_float32
from qsae_bench.metrics.features import FeatureAccumulator
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.models.taps import Activations, Head, Subject, Taps, hidden_states
from qsae_bench.registry.specs import WHOLE, Cell, Shard

if TYPE_CHECKING:
    import numpy as np
    import torch
    from sae_lens import SAE

    from qsae_bench.measure.corpus.packing import Corpus
    from qsae_bench.measure.store.entry import StoredReference

SINK_FACTOR = 10.0
"""a valid position is a sink when its norm exceeds this many times the reference's median norm"""

Progress = Callable[[int, int], None]
"""called with (sequences done, sequences in all)"""


def unheard(done: int, total: int) -> None:
    """Nobody listens."""


def forward_batches(
    subject: Subject, corpus: Corpus, layers: tuple[int, ...], progress: Progress = unheard
) -> Iterator[Activations]:
    """Activations of consecutive batches of the corpus, one forward each.

    The caller holds ``torch.inference_mode()``: a generator can't, its caller's code runs in between.
    """
    import torch

    ids = torch.from_numpy(corpus.ids)
    size = corpus.spec.batch_size
    with Taps(subject.model, layers, subject.centered) as taps:
        for start in range(0, len(ids), size):
            yield taps.read(ids[start : start + size].to(subject.input_device, non_blocking=True))
            progress(min(start + size, len(ids)), len(ids))


def evaluate(
    cell: Cell,
    corpus: Corpus,
    reference: StoredReference,
    saes: Mapping[int, SAE[Any]],
    device: str,
    subject: Subject | None = None,
    batch_size: int | None = None,
    progress: Progress = unheard,
    shard: Shard = WHOLE,
    at_hand: Head | None = None,
) -> Measurement:
    """Measure ``cell`` on ``corpus``, paired with ``reference``.

    With no ``subject`` the reference is measured, from what is stored; a head that is ``at_hand`` is not
    read again where it is the reference's: Gemma 3 12B's takes two GB. ``batch_size`` other than the
    corpus's own is another experiment: the noise floor's. A ``shard`` is measured in the batches, and its
    sequences counted, as they are in the whole.
    """
    import torch

    size = batch_size or corpus.spec.batch_size
    ids = torch.from_numpy(corpus.ids).to(device)
    valid = torch.from_numpy(corpus.valid).to(device)
    head_r, head_q = _heads(reference, subject, at_hand)
    mine = shard.of_batches(len(ids), size)
    cell_columns = Gathered(len(mine))
    layer_columns = {layer: Gathered(len(mine)) for layer in saes}
    features = {layer: FeatureAccumulator(sae.W_dec) for layer, sae in saes.items()}
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        taps = stack.enter_context(Taps(subject.model, tuple(saes), subject.centered)) if subject else None
        for start in range(mine.start, mine.stop, size):
            stop = min(start + size, mine.stop)
            batch, here = ids[start:stop], valid[start:stop]
            stored = reference.read(start, stop)
            own = taps.read(batch.to(subject.input_device)) if taps and subject else stored
            first = start - mine.start
            cell_columns.add(
                first, loss.rows(stored.head_input, own.head_input.to(device), head_r, head_q, batch, here)
            )
            for layer, sae in saes.items():
                columns = layer_rows(
                    stored.taps[layer], own.taps[layer].to(device), sae, features[layer], start, here,
                    SINK_FACTOR * reference.median_norms[layer],
                )  # fmt: skip
                layer_columns[layer].add(first, columns)
            progress(stop - mine.start, len(mine))
    return Measurement(
        model=cell.model.name,
        quantization=cell.quantization.name,
        corpus_fingerprint=corpus.fingerprint,
        d_model=cell.model.d_model,
        rows=_on_host(cell_columns),
        layers={layer: _on_host(columns) for layer, columns in layer_columns.items()},
        features={layer: accumulator.sums() for layer, accumulator in features.items()},
    )


def layer_rows(
    stored: torch.Tensor,
    own: torch.Tensor,
    sae: SAE[Any],
    features: FeatureAccumulator,
    start: int,
    valid: torch.Tensor,
    sink_norm: float,
) -> dict[str, torch.Tensor]:
    """All columns of one layer for one batch: reference residual, the cell's, and the SAE on both."""
    import torch

    x_r = at_least_float32(stored)
    x_q = x_r if own is stored else at_least_float32(own)
    same = x_q is x_r
    sinks = valid & (torch.linalg.vector_norm(x_r, dim=-1) > sink_norm)
    features_r, decoded_r = _through(sae, x_r)
    features_q, decoded_q = (features_r, decoded_r) if same else _through(sae, x_q)
    active = features.add(features_r, features_q, valid, start)
    side_r = reconstruction.side_rows("r", x_r, decoded_r, active.r, valid, sinks)
    if same:
        side_q = {f"{key[:-1]}q": value for key, value in side_r.items()}
    else:
        side_q = reconstruction.side_rows("q", x_q, decoded_q, active.q, valid, sinks)
    return {
        **reconstruction.shared_rows(valid, sinks), **side_r, **side_q,
        **residual.rows(x_r, x_q, decoded_r, decoded_q, valid), **active.rows(valid),
    }  # fmt: skip


def floor(
    subject: Subject,
    corpus: Corpus,
    reference: StoredReference,
    saes: Mapping[int, SAE[Any]],
    device: str,
) -> Callable[[], None]:
    """The products no measurement can do without: a bare forward, SAEs on both residuals, two heads.

    What :func:`evaluate` takes beyond the returned callable is its own overhead; the stored
    activations are read beforehand, so reading them counts as overhead too.
    """
    import torch

    head, decoder = Head.of(subject.model), subject.model.get_decoder()
    chunk = loss.chunk_positions(head.vocabulary, device != "cpu")
    size = corpus.spec.batch_size
    batches = torch.from_numpy(corpus.ids).to(subject.input_device).split(size)
    stored = [reference.read(i * size, i * size + len(b)) for i, b in enumerate(batches)]

    def run() -> None:
        with torch.inference_mode():
            for batch, known in zip(batches, stored, strict=True):
                own = hidden_states(decoder, batch).to(device)
                for layer, sae in saes.items():
                    for _ in range(2):
                        _through(sae, at_least_float32(known.taps[layer]))
                for flat in (own[:, :-1].flatten(0, 1), known.head_input[:, :-1].flatten(0, 1)):
                    for piece in flat.split(chunk):
                        head.product(piece)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def _through(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = sae.encode(x)
    return features, sae.decode(features)


def _heads(reference: StoredReference, subject: Subject | None, at_hand: Head | None) -> tuple[Head, Head]:
    """Reference's and cell's head; one object where their weights are the very same."""
    from qsae_bench.measure.store.entry import head_digest

    own = Head.of(subject.model) if subject else None
    for head in (own, at_hand):
        if head and head_digest(head) == reference.head_digest and head.softcap == reference.softcap:
            return head, own or head
    head = reference.head()
    return head, own or head


def _on_host(columns: Gathered) -> Rows:
    """Everything that was gathered, brought to the host once, at the end."""
    scalars: dict[str, np.ndarray] = {}
    vectors: dict[str, np.ndarray] = {}
    for key, column in columns.columns.items():
        (scalars if column.ndim == 1 else vectors)[key] = column.cpu().numpy()
    return Rows(scalars, vectors)
