"""Hold what a pass over a cell yields: one row of float64 sums per sequence, and the feature sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.metrics.features import FeatureSums
from qsae_bench.metrics.residual import OF_THE_REFERENCE
from qsae_bench.metrics.sinks import SinkRule

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Hold columns over the same n sequences: scalars [n], and vectors [n, d] that formulas average."""

    scalars: Columns
    vectors: Columns = field(default_factory=dict)
    documents: np.ndarray | None = None
    """int64 [n]: the number of each sequence's document within the corpus, because sequences of one
    document are not independent. None for rows that were stored before documents were recorded"""

    def __len__(self) -> int:
        return len(next(iter(self.scalars.values())))

    @property
    def tokens(self) -> int:
        """Return the number of tokens that the rows rest on; only rows of a cell have the column."""
        return round(float(self.scalars["tokens"].sum()))

    def take(self, index: np.ndarray | slice) -> Rows:
        """Return the rows at ``index``, in that order."""
        return Rows(
            {key: column[index] for key, column in self.scalars.items()},
            {key: column[index] for key, column in self.vectors.items()},
            None if self.documents is None else self.documents[index],
        )


@dataclass(frozen=True)
class Measurement:
    """Hold what was measured of one cell. Picklable: nothing in it refers to a model or a device."""

    model: str
    quantization: str
    corpus_fingerprint: str
    d_model: int
    rows: Rows
    """loss and output distribution"""
    layers: Mapping[int, Rows]
    """layer -> residual stream, reconstruction and activity columns"""
    features: Mapping[int, FeatureSums] = field(default_factory=dict)
    """layer -> sums over features, which add up as rows do"""
    costs: Mapping[str, float] = field(default_factory=dict)
    sinks: SinkRule | None = None
    """which positions were left out as sinks; stored rows don't have it"""

    @property
    def is_finite(self) -> bool:
        """Whether every number of every row is finite."""
        every = [*self.rows.scalars.values()]
        for rows in self.layers.values():
            every += [*rows.scalars.values(), *rows.vectors.values()]
        return not self.rows.scalars["nonfinite"].any() and all(np.isfinite(c).all() for c in every)

    @property
    def broken_saes(self) -> list[int]:
        """Layers whose reconstruction is not finite on a residual stream that is."""

        def is_finite(rows: Rows, column: str) -> bool:
            return all(
                np.isfinite(values).all() for key, values in rows.scalars.items() if key[:-2] == column
            )

        return [
            layer for layer, rows in self.layers.items()
            if is_finite(rows, "energy_bos") and not is_finite(rows, "error_bos")
        ]  # fmt: skip

    def with_column(self, key: str, column: np.ndarray) -> Measurement:
        """Return the measurement with one more column [n] of the cell's rows."""
        return replace(self, rows=replace(self.rows, scalars={**self.rows.scalars, key: column}))

    def with_costs(self, costs: Mapping[str, float]) -> Measurement:
        """Return the measurement with more costs, which replace those of the same name."""
        return replace(self, costs={**self.costs, **costs})


def reference_side(measurement: Measurement) -> Measurement:
    """Return the reference on the same sequences: the cell's columns are replaced by the reference's.

    For metrics of which the reference has a value of its own (``harmless`` is None). Columns of the pair,
    such as KL, stay as they are, and feature sums are left out.
    """

    def own(columns: Columns) -> Columns:
        pairs = {key: f"{key[:-1]}r" for key in columns if key.endswith("_q")} | OF_THE_REFERENCE
        return {**columns, **{key: columns[other] for key, other in pairs.items() if other in columns}}

    return _of_all_rows(
        measurement, lambda rows: Rows(own(rows.scalars), own(rows.vectors), rows.documents)
    )


def merge(parts: Sequence[Measurement]) -> Measurement:
    """Join the measurements of one cell on consecutive parts of a corpus.

    Rows are appended and feature sums added, so that every value is that of one pass over the whole.

    Raises:
        QsaeError: There is no part, or they are of different cells or layers.
    """
    if not parts:
        raise QsaeError("nothing to merge")
    first = parts[0]
    for part in parts:
        if part.layers.keys() != first.layers.keys():
            raise QsaeError(f"can't merge layers {list(part.layers)} into {list(first.layers)}")
        if (part.model, part.quantization) != (first.model, first.quantization):
            raise QsaeError(
                f"can't merge {part.model}-{part.quantization} into {first.model}-{first.quantization}"
            )
    return replace(
        first,
        rows=_stack([part.rows for part in parts]),
        layers={layer: _stack([part.layers[layer] for part in parts]) for layer in first.layers},
        features={
            layer: reduce(FeatureSums.plus, [part.features[layer] for part in parts])
            for layer in first.features
        },
    )


def _stack(parts: Sequence[Rows]) -> Rows:
    documents = [p.documents for p in parts if p.documents is not None]
    return Rows(
        {key: np.concatenate([p.scalars[key] for p in parts]) for key in parts[0].scalars},
        {key: np.concatenate([p.vectors[key] for p in parts]) for key in parts[0].vectors},
        np.concatenate(documents) if len(documents) == len(parts) else None,
    )


def first_sequences(measurement: Measurement, sequences: int) -> Measurement:
    """Return the measurement as it stood after its first ``sequences`` rows.

    Feature sums are left out: they are totals over blocks of documents and can't be cut.
    """
    return _of_all_rows(measurement, lambda rows: rows.take(slice(0, sequences)))


def _of_all_rows(measurement: Measurement, change: Callable[[Rows], Rows]) -> Measurement:
    """Change the rows of the cell and of each layer, and leave the feature sums out."""
    layers = {layer: change(rows) for layer, rows in measurement.layers.items()}
    return replace(measurement, rows=change(measurement.rows), layers=layers, features={})
