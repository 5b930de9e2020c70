"""What the intervals are worth: false pass and false fail with the truth on the bound, and coverage.

Data sets are simulated; estimates, intervals and verdicts are a run's own. ``pytest tests/nightly/test_intervals.py
-s`` prints the tables of docs/decisions.md.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from builders import threshold
from paths import ROOT
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import decide
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.selection import Selection
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions
from qsae_bench.stats.bootstrap import LEVEL, bootstrap_weights, column_sums, linear_summands
from qsae_bench.stats.documents import by_document
from qsae_bench.stats.sequential import critical_value, look_sizes, repeated_interval
from qsae_bench.stats.studentized import Studentized
from simulated_intervals import divergences

DOCUMENTS = (32, 64, 100, 128, 256, 512)
PLANS = ((128, 512), (256, 2048), (100, 1000))
SIMULATIONS = 2000
AT_ONCE = 250
"""data sets whose columns are in memory at once"""

NF4 = np.load(ROOT / "tests/fixtures/nf4_kl_by_document.npy").astype(float)
"""mean KLD of each of 2,048 sequences of the embedded model, each a document; skewness 5.8"""

ROWS = {
    "normal": (lambda rng, shape: 1 + rng.normal(size=shape) / 5, 1.0),
    "nf4's KLD": (lambda rng, shape: rng.choice(NF4, size=shape), NF4.mean()),
    "lognormal, s = 1": (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    "lognormal, s = 1.5": (lambda rng, shape: rng.lognormal(sigma=1.5, size=shape), math.exp(1.125)),
    "1% of rows × 50": (
        lambda rng, shape: np.where(rng.random(shape) < 0.01, 50.0, 1.0) * rng.gamma(20, 0.05, size=shape),
        1.49,
    ),
}
"""what a document has on average, and its expectation"""
PROMISED = ("normal", "nf4's KLD")
"""rows for which the claim is made: the others are reported as they are"""


def errors(name: str, sizes: tuple[int, ...]) -> tuple[float, float]:
    """False passes and false fails, in percent, of gates that are looked at with so many documents."""
    draw, truth = ROWS[name]
    rng = np.random.default_rng(1)
    critical = [critical_value(sizes[: k + 1], sizes[-1]) for k in range(len(sizes))]
    found: Counter[str] = Counter()
    for _ in range(0, SIMULATIONS, AT_ONCE):
        rows = draw(rng, (sizes[-1], AT_ONCE))
        looks = [divergences(rows[:size]) for size in sizes]
        for estimates in zip(*looks, strict=True):
            for estimate, size, z in zip(estimates, sizes, critical, strict=True):
                judged = repeated_interval(estimate, z)
                status = decide("kl_divergence", estimate, threshold(truth), size, judged=judged).status
                if status != "inconclusive":
                    break
            found[status] += 1
    return tuple(100 * found[status] / SIMULATIONS for status in ("pass", "fail"))


@pytest.mark.parametrize("name", ROWS)
def test_one_look(name):
    found = {documents: errors(name, (documents,)) for documents in DOCUMENTS}
    print(f"| {name} |", *(f"{wrong:.1f} / {failed:.1f} |" for wrong, failed in found.values()))
    if name in PROMISED:
        assert max(found[100]) <= 3.5
        # 2,000 gates know a share of 2.5% to ± 0.7: of five sizes one may be so far off
        assert all(max(found[documents]) <= 3.6 for documents in DOCUMENTS if documents >= 100)


@pytest.mark.parametrize("name", ROWS)
def test_all_looks_together(name):
    found = [errors(name, look_sizes(*plan)) for plan in PLANS]
    print(f"| {name} |", *(f"{passed + failed:.1f} ({passed:.1f}) |" for passed, failed in found))
    if name in PROMISED:
        assert all(sum(both) <= 5.5 for both in found)


# -- coverage on documents of which some give two sequences ------------------------------------------

LAYER = 3
COVERED = ("kl_divergence", "perplexity_increase_pct", "perturbation_nsr", "fvu_drift")
SEQUENCES = (100, 256, 512)
CORPORA = 400
MEDIAN_LENGTH, LENGTH_SIGMA = 1.75, 1.0
"""lognormal lengths of documents, in sequences: of the Pile's, cut into sequences of 512 tokens"""
LATENT = 0.36
"""correlation of two sequences of a document in their rank by KLD, as normal scores"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Measurement:
    """Rows of nf4 on the embedded model: the population that corpora are drawn from."""
    registry = load_registry()
    selection = Selection(models=("tiny_gemma3",), quantizations=("reference", "nf4"), tokens=32_512)
    folder = tmp_path_factory.mktemp("qsae")
    session = LocalSession(SessionOptions(registry, Thresholds({}), folder, "test", selection=selection))
    _, cell = registry.select(selection)
    found = session.measure(cell).measurement
    session.close()
    return found


def corpus(rng: np.random.Generator, by_kl: np.ndarray, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the population, and the document of each: at most two a document, which are alike."""
    index: list[int] = []
    documents: list[int] = []
    while len(index) < sequences:
        length = int(MEDIAN_LENGTH * math.exp(LENGTH_SIGMA * rng.normal()))
        taken = min(length, 2, sequences - len(index))
        shared = math.sqrt(LATENT) * rng.normal()
        scores = shared + math.sqrt(1 - LATENT) * rng.normal(size=taken)
        ranks = [0.5 * math.erfc(-score / math.sqrt(2)) for score in scores]
        index += [int(by_kl[min(int(rank * len(by_kl)), len(by_kl) - 1)]) for rank in ranks]
        documents += [documents[-1] + 1 if documents else 0] * taken
    return np.array(index), np.array(documents)


def interval(rows: Rows, metric: str, d_model: int) -> tuple[float, float]:
    """As ``estimate`` makes it, of one metric."""
    formula, constants = METRICS[metric].formula, {"d_model": float(d_model)}
    assert formula is not None
    once = by_document(rows)
    found = Studentized(
        formula, column_sums(once, np.ones((1, len(once)))) | constants, linear_summands(once)
    )
    for weights in bootstrap_weights(len(once), 1000, seed=0):
        found.add(weights, column_sums(once, weights) | constants)
    low, high = found.interval(LEVEL, METRICS[metric].limits)
    return float(low), float(high)


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_coverage_on_documents_of_differing_length(measured, sequences):
    rng = np.random.default_rng(2)
    by_kl = np.argsort(measured.rows.scalars["kl"])
    places = {
        "cell": measured.rows,
        "layer": measured.layers[LAYER],
    }
    truth, hits, pairs, counts = {}, Counter[str](), [], []
    for metric in COVERED:
        rows = places[METRICS[metric].scope]
        sums = column_sums(rows, np.ones((1, len(rows)))) | {"d_model": float(measured.d_model)}
        truth[metric] = np.asarray(METRICS[metric].formula(sums)).item()
    for _ in range(CORPORA):
        index, documents = corpus(rng, by_kl, sequences)
        counts.append(documents[-1] + 1)
        second = np.flatnonzero(np.diff(documents) == 0)
        kl = measured.rows.scalars["kl"][index]
        pairs += list(zip(kl[second], kl[second + 1], strict=True))
        for metric in COVERED:
            rows = replace(places[METRICS[metric].scope].take(index), documents=documents)
            low, high = interval(Rows(rows.scalars, rows.vectors, documents), metric, measured.d_model)
            hits[metric] += low <= truth[metric] <= high
    one, other = np.array(pairs).T
    alike = np.corrcoef(np.concatenate([one, other]), np.concatenate([other, one]))[0, 1]
    shown = " | ".join(f"{100 * hits[metric] / CORPORA:.1f}" for metric in COVERED)
    print(f"| {sequences} | {np.mean(counts):.0f} | {alike:.2f} | {shown} |")
    assert all(0.92 <= hits[metric] / CORPORA <= 0.985 for metric in COVERED)
