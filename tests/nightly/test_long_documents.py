"""Two halves of one text of long documents tell the same: their intervals overlap as often as they should."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions
from qsae_bench.stats.bootstrap import estimate
from qsae_bench.tiny import grammar
from qsae_bench.tiny.phrases import Dice

DOCUMENTS = 128
MEDIAN_CHARACTERS, SIGMA = 4000, 1.0
"""of the lengths of documents, which are lognormal as those of the Pile's parts roughly are"""
MOST_CHARACTERS = 60_000
LENGTH = 64
PAIRS = 300
REPLICATES = 500


def long_documents(count: int):
    """Documents of the embedded model's grammar, each with one topic, genre and cast throughout."""
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN_CHARACTERS), SIGMA, count)
    with pytest.MonkeyPatch.context() as patch:
        for number, length in enumerate(np.minimum(lengths, MOST_CHARACTERS).astype(int).tolist()):
            patch.setattr(grammar, "TARGET_CHARACTERS", (length, length))
            yield grammar._Document(Dice(f"long documents:{number}")).write()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Measurement:
    """The rows of NF4 on such a text, as the suite takes them by default: two sequences of a document."""
    folder = tmp_path_factory.mktemp("long")
    text = folder / "long.jsonl"
    lines = (json.dumps({"text": document}) for document in long_documents(DOCUMENTS))
    text.write_text("\n".join(lines), encoding="utf-8")
    registry = load_registry()
    selection = Selection(
        models=("tiny_gemma3",), quantizations=("nf4",), layers="3", corpus=f"textfile:{text}",
        tokens=2 * DOCUMENTS * (LENGTH - 1), sequence_length=LENGTH, batch_size=16,
    )  # fmt: skip
    session = LocalSession(SessionOptions(registry, Thresholds({}), folder, "test", selection=selection))
    (cell,) = registry.select(selection)
    found = session.measure(cell).measurement
    session.close()
    return found


def interval(whole: Measurement, rows: np.ndarray) -> tuple[float, float]:
    """The KLD's interval on these sequences, as the suite makes it."""
    part = Rows(whole.rows.scalars, {}, whole.rows.documents).take(rows)
    found = estimate(replace(whole, rows=part, layers={}, features={}), REPLICATES).cell["kl_divergence"]
    return found.low, found.high


def test_two_halves_of_a_text_overlap(measured):
    documents = measured.rows.documents
    assert len(documents) > 1.7 * DOCUMENTS and np.bincount(documents).max() == 2
    rng = np.random.default_rng(0)
    apart = 0
    for _ in range(PAIRS):
        one = rng.permutation(documents[-1] + 1)[: DOCUMENTS // 2]
        in_one = np.isin(documents, one)
        (low, high), (other_low, other_high) = (
            interval(measured, np.flatnonzero(side)) for side in (in_one, ~in_one)
        )
        apart += high < other_low or other_high < low
    print(f"{apart} of {PAIRS} pairs are apart")
    assert apart <= 0.05 * PAIRS
