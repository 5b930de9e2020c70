"""Measure one cell in one pass: batches of tokens, activations at the taps, sums of every metric, a
Measurement.

The reference's activations come from the store; the cell's own come from one forward pass a batch. For the
reference cell both are the store's, so a reference against itself differs by exactly 0 and a warm store
needs no forward at all. Nothing in the loop waits for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qsae_bench.metrics import loss, reconstruction, residual
from qsae_bench.metrics.base import ColumnBuffer, at_least_float32
from qsae_bench.metrics.features import FeatureAccumulator
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.metrics.sinks import Positions, SinkRule
from qsae_bench.models.sae_forward import decoder, through
from qsae_bench.models.taps import Activations, Head, Subject, Taps, hidden_states
from qsae_bench.registry.specs import WHOLE, Cell, Shard

if TYPE_CHECKING:
    import numpy as np
    import torch
    from sae_lens import SAE

    from qsae_bench.measure.corpus.packing import Corpus
    from qsae_bench.measure.store.entry import StoredReference

OnProgress = Callable[[int, int], None]
"""called with (sequences done, sequences in all)"""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def forward_batches(
    subject: Subject, corpus: Corpus, layers: tuple[int, ...], on_progress: OnProgress = no_progress
) -> Iterator[Activations]:
    """Yield the activations of consecutive batches of the corpus, one forward each.

    The caller holds ``torch.inference_mode()``: a generator can't, because its caller's code runs in
    between.
    """
    import torch

    ids = torch.from_numpy(corpus.ids)
    size = corpus.spec.batch_size
    with Taps(subject.model, layers, subject.centered) as taps:
        for start in range(0, len(ids), size):
            yield taps.read(ids[start : start + size].to(subject.input_device, non_blocking=True))
            on_progress(min(start + size, len(ids)), len(ids))


def evaluate(
    cell: Cell,
    corpus: Corpus,
    reference: StoredReference,
    saes: Mapping[int, SAE[Any]],
    device: str,
    subject: Subject | None = None,
    *,
    batch_size: int | None = None,
    shard: Shard = WHOLE,
    loaded_head: Head | None = None,
    on_progress: OnProgress = no_progress,
) -> Measurement:
    """Measure ``cell`` on ``corpus``, paired with ``reference``; metrics are computed on ``device``.

    Args:
        subject: the cell's model; None for the reference, which is measured from what is stored.
        batch_size: other than the corpus's own for the noise floor, which is another experiment.
        shard: a part of the corpus; its batches and the indices of its sequences are those of the whole.
        loaded_head: a head in memory, used where it is the reference's own, which may take 2 GB to read.
    """
    import torch

    size = batch_size or corpus.spec.batch_size
    ids = torch.from_numpy(corpus.ids).to(device)
    valid = torch.from_numpy(corpus.valid).to(device)
    documents = torch.from_numpy(corpus.documents).to(device)
    mine = shard.of_batches(len(ids), size)
    heads = _heads(reference, subject, loaded_head)
    # where special tokens count too, as in the study, nothing is left out
    sinks = None if corpus.spec.every_position else reference.sinks
    accumulator = CellAccumulator(saes, heads, mine, documents, sinks)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        taps = stack.enter_context(Taps(subject.model, tuple(saes), subject.centered)) if subject else None
        for start in range(mine.start, mine.stop, size):
            stop = min(start + size, mine.stop)
            batch = ids[start:stop]
            stored = reference.read(start, stop)
            own = taps.read(batch.to(subject.input_device)) if taps and subject else stored
            accumulator.add(start, batch, valid[start:stop], stored, own)
            on_progress(stop - mine.start, len(mine))
    return accumulator.measurement(cell, corpus)


class CellAccumulator:
    """Accumulate what one pass over a cell measures, batch by batch, on the device."""

    def __init__(
        self,
        saes: Mapping[int, SAE[Any]],
        heads: tuple[Head, Head],
        sequences: range,
        documents: torch.Tensor,
        sinks: SinkRule | None,
    ) -> None:
        """Prepare for a range of the corpus's sequences.

        Args:
            heads: the reference's and the cell's.
            documents: the number of each sequence's document, int64, of the whole corpus.
            sinks: which positions are sinks; None if none is.
        """
        self._heads = heads
        self._sequences = sequences
        self._sinks = sinks
        self._rows = ColumnBuffer(len(sequences))
        self._layers = {layer: LayerAccumulator(sae, sequences, documents) for layer, sae in saes.items()}

    def add(
        self, start: int, ids: torch.Tensor, valid: torch.Tensor, stored: Activations, own: Activations
    ) -> None:
        """Add one batch, whose first sequence has the index ``start`` in the corpus.

        ``ids`` are int64 and ``valid``, the positions that count, bool [batch, length]. ``stored`` are the
        reference's activations, ``own`` the cell's: the same object if the cell is the reference.
        """
        head_input = own.head_input.to(ids.device)
        rows = loss.columns(stored.head_input, head_input, *self._heads, ids, valid)
        self._rows.add(start - self._sequences.start, rows)
        taps = {layer: _pair(stored.taps[layer], own.taps[layer], ids.device) for layer in self._layers}
        rule = self._sinks
        if rule is None:
            positions = Positions.without_sinks(valid)
        else:
            positions = Positions.by_norm(valid, *taps[rule.layer], rule.norm)
        for layer, accumulator in self._layers.items():
            accumulator.add(start, positions, *taps[layer])

    def measurement(self, cell: Cell, corpus: Corpus) -> Measurement:
        """Return what was added, brought to the host."""
        documents = corpus.documents[self._sequences.start : self._sequences.stop]
        return Measurement(
            model=cell.model.name,
            quantization=cell.quantization.name,
            corpus_fingerprint=corpus.fingerprint,
            d_model=cell.model.d_model,
            rows=_on_host(self._rows, documents),
            layers={layer: _on_host(one.rows, documents) for layer, one in self._layers.items()},
            features={layer: one.features.sums() for layer, one in self._layers.items()},
            sinks=self._sinks,
        )


class LayerAccumulator:
    """Accumulate the rows and the feature vectors of one layer."""

    def __init__(self, sae: SAE[Any], sequences: range, documents: torch.Tensor) -> None:
        self.rows = ColumnBuffer(len(sequences))
        self.features = FeatureAccumulator(decoder(sae), documents)
        self._sae = sae
        self._first = sequences.start

    def add(self, start: int, positions: Positions, x_r: torch.Tensor, x_q: torch.Tensor) -> None:
        """Add one batch of residuals [batch, length, d_model], the reference's and the cell's, and the SAE
        on both."""
        same = x_q is x_r
        features_r, decoded_r = through(self._sae, x_r)
        features_q, decoded_q = (features_r, decoded_r) if same else through(self._sae, x_q)
        active = self.features.add(features_r, features_q, positions.ordinary, start)
        side_r = reconstruction.side_columns("r", x_r, decoded_r, active.r, positions)
        if same:
            side_q = {f"{key[:-1]}q": value for key, value in side_r.items()}
        else:
            side_q = reconstruction.side_columns("q", x_q, decoded_q, active.q, positions)
        columns = {
            **positions.columns(), **side_r, **side_q,
            **residual.columns(x_r, x_q, decoded_r, decoded_q, positions),
            **active.columns(positions.ordinary),
        }  # fmt: skip
        self.rows.add(start - self._first, columns)


def evaluation_floor(
    subject: Subject,
    corpus: Corpus,
    reference: StoredReference,
    saes: Mapping[int, SAE[Any]],
    device: str,
) -> Callable[[], None]:
    """Return a callable that does only what no measurement can do without.

    That is a bare forward, the SAEs on both residuals and two heads' products. What :func:`evaluate` takes
    beyond it is its own overhead; stored activations are read beforehand, so reading them counts as
    overhead.
    """
    import torch

    head, blocks = Head.of(subject.model), subject.model.get_decoder()
    chunk = loss.chunk_positions(head.vocabulary, device != "cpu")
    size = corpus.spec.batch_size
    batches = torch.from_numpy(corpus.ids).to(subject.input_device).split(size)
    stored = [reference.read(i * size, i * size + len(b)) for i, b in enumerate(batches)]

    def run() -> None:
        with torch.inference_mode():
            for batch, known in zip(batches, stored, strict=True):
                own = hidden_states(blocks, batch).to(device)
                for layer, sae in saes.items():
                    for _ in range(2):
                        through(sae, at_least_float32(known.taps[layer]))
                for flat in (own[:, :-1].flatten(0, 1), known.head_input[:, :-1].flatten(0, 1)):
                    for piece in flat.split(chunk):
                        head.product(piece)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def _pair(
    stored: torch.Tensor, own: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's residuals of both sides on the device, one object where they are the same."""
    x_r = at_least_float32(stored)
    return x_r, x_r if own is stored else at_least_float32(own.to(device))


def _heads(
    reference: StoredReference, subject: Subject | None, loaded_head: Head | None
) -> tuple[Head, Head]:
    """Return the reference's and the cell's head; one object where their weights are the very same."""
    from qsae_bench.measure.store.entry import head_digest

    own = Head.of(subject.model) if subject else None
    for head in (own, loaded_head):
        if head and head_digest(head) == reference.head_digest and head.softcap == reference.softcap:
            return head, own or head
    head = reference.head()
    return head, own or head


def _on_host(columns: ColumnBuffer, documents: np.ndarray) -> Rows:
    """Bring everything that was gathered to the host, once, at the end."""
    scalars: dict[str, np.ndarray] = {}
    vectors: dict[str, np.ndarray] = {}
    for key, column in columns.columns.items():
        (scalars if column.ndim == 1 else vectors)[key] = column.cpu().numpy()
    return Rows(scalars, vectors, documents)
