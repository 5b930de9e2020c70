"""What several test files need: specs, thresholds, and rows made from activations in plain float64."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsae_bench.gate.thresholds import Threshold
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.features import VECTORS, FeatureSums
from qsae_bench.metrics.loss import KL_COLUMN
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.registry.specs import Cell, CorpusSpec
from qsae_bench.results.document import RunDocument
from qsae_bench.results.run_files import write_run
from qsae_bench.run.document import run_document
from qsae_bench.run.local_session import LocalSession


def needs(*modules: str) -> Any:
    """Skip where a quantization library is not installed; CI has them all."""
    lacking = [module for module in modules if importlib.util.find_spec(module.split(".")[0]) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"pip install 'qsae-bench[backends]' for {lacking}")


def one_line(error: BaseException) -> str:
    """The message, which must be a single line that says something."""
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    return message


def feature_sums(r: np.ndarray, q: np.ndarray) -> FeatureSums:
    """The sums over positions of activations [blocks, positions, d_sae] of both sides."""
    both = (r > 0) & (q > 0)
    columns = (r, q, r**2, q**2, r * q, both, (r > 0) & ~both, (q > 0) & ~both)
    vectors = {name: column.sum(1).astype(float) for name, column in zip(VECTORS, columns, strict=True)}
    return FeatureSums(vectors, np.full(len(r), float(r.shape[1])), np.ones(r.shape[2]))


def features_of_two(
    rng: np.random.Generator,
    n: int = 64,
    length: int = 16,
    d_sae: int = 24,
    noise: float = 0.5,
    quiet: float = 0.0,
) -> tuple[FeatureSums, FeatureSums]:
    """Two quantizations of the same activations, alike in law: documents and features have noise of their own."""
    active = rng.random((n, length, d_sae)) < 0.3
    r = np.where(active, rng.gamma(2.0, size=active.shape), 0)
    level = noise * rng.uniform(size=d_sae) * rng.gamma(0.5, 2.0, size=(n, 1, 1))
    made = []
    for scale in (1 - quiet, 1.0):
        own = rng.gamma(0.5, 2.0, size=(n, 1, 1))
        q = np.where(active, np.maximum(r + scale * np.sqrt(level * own) * rng.normal(size=r.shape), 0), 0)
        by_block = (np.stack([np.concatenate(side[k::8]) for k in range(8)]) for side in (r, q))
        made.append(feature_sums(*by_block))
    return made[0], made[1]


def corpus_spec(**changes: Any) -> CorpusSpec:
    fields: dict[str, Any] = {
        "name": "stub", "kind": "stub", "sequence_length": 5, "tokens": 8, "max_tokens": 80, "batch_size": 2,
        "sequences_per_document": 1000,
    }  # fmt: skip
    return CorpusSpec(**(fields | changes))


def threshold(bound: float, side: Any = "max", metric: str = "perplexity_increase_pct") -> Threshold:
    return Threshold(metric, side, bound, "measured 1.2 with margin 0.3", table="tiny.nf4")


@dataclass(frozen=True)
class Side:
    """One side of a layer: residual and its reconstruction [n, length, d], activations [.., d_sae]."""

    x: np.ndarray
    x_hat: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Synthetic:
    """Everything that rows are sums of. Position 0 is BOS: huge, and not valid."""

    r: Side
    q: Side
    valid: np.ndarray
    sinks: np.ndarray
    """of the reference"""
    sinks_q: np.ndarray
    """of the cell: one gained and one lost"""
    nll_r: np.ndarray
    nll_q: np.ndarray
    scored: np.ndarray
    """bool [n, length - 1]: predicted positions whose target is valid"""
    kl: np.ndarray
    right_r: np.ndarray
    right_q: np.ndarray
    """bool [n, length - 1]: the argmax is the target"""
    delta_p: np.ndarray

    @property
    def ordinary(self) -> np.ndarray:
        return self.valid & ~self.sinks & ~self.sinks_q


def synthetic(seed: int = 0, n: int = 40, length: int = 12, d: int = 6, d_sae: int = 16) -> Synthetic:
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(d_sae, d)) / np.sqrt(d)
    centre = rng.normal(size=d)

    def side(x: np.ndarray) -> Side:
        features = np.maximum(x @ decoder.T - 0.5, 0)
        return Side(x, 0.5 * features @ decoder, features)

    document = rng.normal(size=(n, 1, d))  # shared within a row: positions of a document depend
    x = centre + 0.5 * document + rng.normal(size=(n, length, d))
    valid = rng.random((n, length)) < 0.9
    valid[:, 0], valid[:, 1] = False, True
    sinks = valid & (rng.random((n, length)) < 0.05)
    x[sinks] *= 30
    x[:, 0] *= 100
    sinks_q = sinks.copy()
    for here, now in ((sinks, False), (valid & ~sinks, True)):
        sinks_q.ravel()[np.flatnonzero(here)[:1]] = now
    nll_r = rng.gamma(2.0, 1.0, size=(n, length - 1)) + 0.3 * rng.random((n, 1))
    return Synthetic(
        r=side(x),
        q=side(x + 0.2 * rng.normal(size=x.shape)),
        valid=valid,
        sinks=sinks,
        sinks_q=sinks_q,
        nll_r=nll_r,
        nll_q=nll_r + 0.05 + 0.1 * rng.normal(size=nll_r.shape),
        scored=valid[:, 1:],
        kl=rng.gamma(0.5, 0.02, size=nll_r.shape),
        right_r=rng.random(nll_r.shape) < 0.5,
        right_q=rng.random(nll_r.shape) < 0.4,
        delta_p=0.05 * rng.normal(size=nll_r.shape),
    )


def measurement(data: Synthetic, layers: tuple[int, ...] = (3,), **fields: Any) -> Measurement:
    """The rows that a pass over these activations would yield."""
    cell, layer = loss_rows(data), layer_rows(data)
    about = {"model": "tiny", "quantization": "nf4", "corpus_fingerprint": "f" * 32}
    return Measurement(
        **(about | fields), d_model=data.r.x.shape[2], rows=cell, layers=dict.fromkeys(layers, layer)
    )


def self_measurement(data: Synthetic) -> Measurement:
    """The same, with every column of the cell a copy of the reference's."""
    own = measurement(data)

    def copied(rows: Rows) -> Rows:
        def columns(found: Any) -> dict[str, np.ndarray]:
            return {
                key: (found.get(f"{key[:-1]}r", column) if key.endswith("_q") else column).copy()
                for key, column in found.items()
            }

        return Rows(columns(rows.scalars), columns(rows.vectors))

    layers = {layer: copied(rows) for layer, rows in own.layers.items()}
    return Measurement("tiny", "reference", own.corpus_fingerprint, own.d_model, copied(own.rows), layers)


def loss_rows(data: Synthetic) -> Rows:
    def over_scored(values: np.ndarray) -> np.ndarray:
        return np.where(data.scored, values, 0.0).sum(axis=1)

    ones = np.ones(data.scored.shape)
    known = {
        "nll_r": over_scored(data.nll_r), "nll_q": over_scored(data.nll_q), "tokens": over_scored(ones),
        "nonfinite": np.zeros(len(ones)), "predicted": ones.sum(axis=1), "kl": over_scored(data.kl),
        "flip_wrong": over_scored(data.right_r & ~data.right_q),
        "flip_right": over_scored(~data.right_r & data.right_q),
        "top1_same": over_scored(data.right_r == data.right_q),
        "delta_p": over_scored(data.delta_p), "delta_p_squared": over_scored(data.delta_p**2),
        "bytes": over_scored(4 * ones),
    }  # fmt: skip
    return Rows(_with_others(known, "cell"), {KL_COLUMN: np.where(data.scored, data.kl, np.nan)})


def layer_rows(data: Synthetic) -> Rows:
    kinds = {
        "positions": data.ordinary, "positions_all": data.valid, "positions_bos": np.ones_like(data.valid),
        "sinks": data.sinks, "sinks_gained": data.sinks_q & ~data.sinks,
        "sinks_lost": data.sinks & ~data.sinks_q,
    }  # fmt: skip
    scalars = {key: mask.sum(axis=1).astype(float) for key, mask in kinds.items()}
    moved = data.q.x - data.r.x
    positions = {
        "moved": (moved**2).sum(-1), "moved_norm": np.linalg.norm(moved, axis=-1),
        "cosine": cosines(data.q.x, data.r.x),
        "cross_error": ((data.r.x - data.q.x_hat) ** 2).sum(-1),
        "decoded_moved": ((data.q.x_hat - data.r.x_hat) ** 2).sum(-1),
    }  # fmt: skip
    scalars |= {key: (value * data.ordinary).sum(1) for key, value in positions.items()}
    scalars |= {f"{key}_all": (positions[key] * data.valid).sum(1) for key in ("moved", "cross_error")}
    vectors = {}
    for name, side in (("r", data.r), ("q", data.q)):
        energy, error = (side.x**2).sum(-1), ((side.x - side.x_hat) ** 2).sum(-1)
        norm, norm_hat = np.sqrt(energy), np.linalg.norm(side.x_hat, axis=-1)
        cosine = cosines(side.x, side.x_hat)
        elements = side.x.sum(-1)
        values = {
            "energy": energy, "error": error, "norm": norm, "norm_hat": norm_hat,
            "cosine_hat": cosine, "active": (side.features > 0).sum(-1),
        }  # fmt: skip
        for key, value in values.items():
            scalars[f"{key}_{name}"] = (value * data.ordinary).sum(1)
        for key, value in (("energy", energy), ("error", error), ("elements", elements)):
            scalars[f"{key}_all_{name}"] = (value * data.valid).sum(1)
            scalars[f"{key}_bos_{name}"] = value.sum(1)
        vectors[f"sum_{name}"] = (side.x * data.ordinary[..., None]).sum(1)
        vectors[f"sum_sinks_{name}"] = (side.x * (data.valid & ~data.ordinary)[..., None]).sum(1)
    return Rows(_with_others(scalars, "layer"), vectors)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one of the two is the zero vector."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), norms, out=np.zeros(norms.shape), where=norms > 0)


def messages(
    session: LocalSession,
    cell: Cell,
    metrics: tuple[str, ...],
    layer: int | None = None,
) -> str:
    """Return the messages with which tests that gate these metrics would fail, or ''."""
    found = [session.judge_gate(cell, GatedMetric(metric, layer)) for metric in metrics]
    return "\n".join(one.message for one in found if one is not None)


def write_session(session: LocalSession) -> tuple[RunDocument, Path]:
    """The run document and rows of everything that a session measured, written without pytest."""
    document = run_document(session)
    rows = {
        cell.id: measured.measurement.with_costs(session.costs(cell))
        for cell, measured in session.measured.items()
    }
    return document, write_run(session.options.qsae_dir, document, rows)


class _Asked(dict[str, float]):
    """Notes which columns a formula asks for."""

    def __missing__(self, key: str) -> float:
        self[key] = 1.0
        return 1.0


def _with_others(known: dict[str, np.ndarray], scope: str) -> dict[str, np.ndarray]:
    """``known`` and a plausible positive column for whatever else the scope's formulas ask for.

    Tests with an oracle use the known columns only; the others let properties that every metric has
    (order and splits of rows don't matter) be tested for metrics that come later.
    """
    asked = _Asked()
    with np.errstate(all="ignore"):
        for metric in METRICS.values():
            if metric.scope == scope and metric.formula is not None:
                metric.formula(asked)
    others = {
        key for key in asked if key not in known and key != "d_model" and not key.startswith("sumsq_")
    }
    rng = np.random.default_rng(99)
    n = len(next(iter(known.values())))
    return known | {key: rng.uniform(0.5, 1.5, size=n) for key in sorted(others)}
