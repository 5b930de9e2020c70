"""Read from a run document what can move a number although neither model nor quantization changed. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qsae_bench.gate.attribution import Setup
from qsae_bench.gate.verdict import FAILING
from qsae_bench.machine import hardware_of
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord, RunDocument

IRRELEVANT_PACKAGES = frozenset({"pytest", "pytest-benchmark", "pyarrow", "datasets"})
"""Packages whose version can't change a measured number: what they read is in the corpus fingerprint."""

RELEVANT_ENVIRONMENT = ("python", "driver", "cuda", "threads", "cpu")
"""Keys of the environment, beside the versions, that can change a number in its last digits."""

UNKNOWN_HARDWARE = "unknown hardware"


def setup_of(document: RunDocument, cell: CellRecord, layer: int | None) -> Setup:
    """Return the setup in which a cell of a stored run was measured, at one of its layers."""
    corpus = document.corpus.get(cell.model)
    return Setup(
        cell.hardware or hardware_of(document.environment) or UNKNOWN_HARDWARE,
        relevant_versions(document.environment),
        corpus.fingerprint if corpus else "",
        cell.revision, corpus.batch_size if corpus else 0,
        document.saes.get(cell.model, {}).get(str(layer), ""),
        document.protocol, document.metrics_version, cell.recipe,
    )  # fmt: skip


METRICS_ENTRY = "qsae-bench metrics"
"""key in a run's ``versions`` of the version of the metrics, where that is not 1. It has no column of its
own, so that a history from before the field can be read and added to. No package has a space in its name"""


def relevant_versions(environment: Mapping[str, Any], metrics_version: int = 1) -> dict[str, str]:
    """Return everything that can change a number between two runs on the same hardware, by name."""
    packages = environment.get("versions")
    packages = packages if isinstance(packages, dict) else {}
    found = {key: value for key, value in packages.items() if key not in IRRELEVANT_PACKAGES}
    found |= {key: environment[key] for key in RELEVANT_ENVIRONMENT if environment.get(key) is not None}
    found |= {METRICS_ENTRY: metrics_version} if metrics_version != 1 else {}
    return {key: str(value) for key, value in found.items()}


def metrics_version(versions: Mapping[str, str]) -> int:
    """Return the version of the metrics that a run's ``versions`` hold."""
    found = versions.get(METRICS_ENTRY, "1")
    return int(found) if re.fullmatch("[1-9][0-9]{0,6}", found) else 1


def is_sane(cell: CellRecord) -> bool:
    """Return whether a cell was measured and is valid; a reference's verdicts are its sanity bounds."""
    judged = [v.status for v in cell.verdicts]
    wrong = FAILING if cell.quantization == REFERENCE else {"invalid"}
    return cell.status == "measured" and not cell.reason and wrong.isdisjoint(judged)
