"""Store sequence rows as Parquet, and the feature vectors in a safetensors file beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.files import os_errors
from qsae_bench.metrics.features import VECTORS, FeatureSums
from qsae_bench.metrics.measurement import Measurement, Rows

if TYPE_CHECKING:
    import pyarrow


FEATURES_SUFFIX = ".features.safetensors"
DOCUMENT_COLUMN = "document"
"""the number of each sequence's document; files of earlier versions lack it"""


def write_rows(path: Path, measurement: Measurement) -> None:
    """Write a measurement: one Parquet row per sequence, feature vectors in a file beside it.

    Columns of a layer are prefixed ``layer{L}.``; vectors are lists of fixed length.

    Raises:
        OSError: A file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    if measurement.rows.documents is not None:
        columns[DOCUMENT_COLUMN] = pa.array(measurement.rows.documents)
    layers = ((f"layer{layer}.", rows) for layer, rows in measurement.layers.items())
    for prefix, rows in (("", measurement.rows), *layers):
        for key, scalar in rows.scalars.items():
            columns[f"{prefix}{key}"] = pa.array(scalar)
        for key, vector in rows.vectors.items():
            flat = pa.array(np.ascontiguousarray(vector).reshape(-1))
            columns[f"{prefix}{key}"] = pa.FixedSizeListArray.from_arrays(flat, vector.shape[1])
    same = ("model", "quantization", "corpus_fingerprint", "d_model")
    about = {name: getattr(measurement, name) for name in same} | {"costs": dict(measurement.costs)}
    table = pa.table(columns).replace_schema_metadata({"qsae_bench": json.dumps(about)})
    pq.write_table(table, path, compression="zstd")
    _write_features(path.with_suffix(FEATURES_SUFFIX), measurement)


def read_rows(path: Path) -> Measurement:
    """Read the measurement that :func:`write_rows` stored.

    Raises:
        QsaeError: The file is missing, or is not a file of sequence rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"qsae_bench"])
        return Measurement(
            **_columns(table), features=_read_features(path.with_suffix(FEATURES_SUFFIX)), **about
        )
    except OSError as error:
        raise QsaeError(f"{path}: can't be read: {error}") from None
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError):
        raise QsaeError(f"{path}: not a file of sequence rows") from None


def _columns(table: pyarrow.Table) -> dict[str, Any]:
    """Return ``rows`` and ``layers`` of a measurement."""
    import pyarrow as pa

    documents = None
    if DOCUMENT_COLUMN in table.column_names:
        documents = np.asarray(table.column(DOCUMENT_COLUMN).combine_chunks())
        table = table.drop_columns([DOCUMENT_COLUMN])
    found: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for name in table.column_names:
        prefix, _, key = name.rpartition(".")
        column = table.column(name).combine_chunks()
        is_vector = pa.types.is_fixed_size_list(column.type)
        array = np.asarray(column.flatten() if is_vector else column)
        array = array.reshape(-1, column.type.list_size) if is_vector else array
        found.setdefault(prefix, ({}, {}))[int(is_vector)][key] = array
    layers = {int(p.removeprefix("layer")): Rows(*both, documents) for p, both in found.items() if p}
    return {"rows": Rows(*found[""], documents), "layers": layers}


def _write_features(path: Path, measurement: Measurement) -> None:
    """Write the feature vectors of every layer: ``layer{L}.{name}``, float64 [blocks, d_sae]."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for layer, sums in measurement.features.items():
        tensors |= {f"layer{layer}.{name}": np.ascontiguousarray(v) for name, v in sums.vectors.items()}
        tensors[f"layer{layer}.positions"] = sums.positions
        tensors[f"layer{layer}.decoder_square"] = sums.decoder_square
    with os_errors():
        save_file(tensors, path)


def _read_features(path: Path) -> dict[int, FeatureSums]:
    """Read what :func:`_write_features` stored; empty if there is no file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
        layers = sorted({int(name.split(".")[0].removeprefix("layer")) for name in tensors})
        return {
            layer: FeatureSums(
                {name: tensors[f"layer{layer}.{name}"] for name in VECTORS},
                tensors[f"layer{layer}.positions"],
                tensors[f"layer{layer}.decoder_square"],
            )
            for layer in layers
        }
    except (OSError, SafetensorError, KeyError, ValueError):
        raise QsaeError(f"{path}: not a file of feature vectors") from None
