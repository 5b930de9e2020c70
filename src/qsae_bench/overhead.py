"""What an evaluation is held against: the same batches, with only the products that it can't do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qsae_bench.specs import Cell

if TYPE_CHECKING:
    from qsae_bench.session import Session

BATCHES = 2
"""enough for a stable ratio, few enough to repeat in turns"""


def works(session: Session, cell: Cell) -> tuple[dict[str, Callable[[], object]], int]:
    """Callables over the first batches of the cell's corpus, and the tokens that each of them does.

    ``evaluation``: a full pass with a forward. ``evaluation_floor``: a bare forward, the SAEs on both
    residuals, both heads. ``forward``: the bare forward alone.
    """
    import torch

    from qsae_bench import speed
    from qsae_bench.evaluation import evaluate, floor

    model, reference, subject = session.model(cell), session.reference(cell), session.load(cell).subject
    corpus = model.corpus.first(BATCHES * model.corpus.spec.batch_size)
    saes, device = model.saes, model.compute_device
    batches = torch.from_numpy(corpus.ids).to(subject.input_device).split(corpus.spec.batch_size)
    forward = speed.forwards(subject.model.get_decoder(), batches)
    return {
        "evaluation": lambda: evaluate(cell, corpus, reference, saes, device, subject),
        "evaluation_floor": floor(subject, corpus, reference, saes, device),
        "forward": forward.run,
    }, forward.tokens
