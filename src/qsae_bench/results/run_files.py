"""Write the files of a whole run at once, and point ``latest`` at it.

A run is a folder ``<qsae dir>/runs/<run id>/`` with ``run.json`` and ``rows/<cell>.parquet``; ``<qsae
dir>/latest`` points at the newest. What is written at once is written under another name and renamed. What
a run leaves cell by cell is written by :mod:`qsae_bench.results.run_folder`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.document import RunDocument, text_of
from qsae_bench.results.rows import write_rows

DOCUMENT = "run.json"
ROWS_DIR = "rows"


def rows_path(folder: Path, cell: str) -> Path:
    """Return the file that holds a cell's rows in a run's folder."""
    return folder / ROWS_DIR / f"{cell}.parquet"


def write_run(qsae_dir: Path, document: RunDocument, measurements: Mapping[str, Measurement]) -> Path:
    """Write a whole run's folder in one rename, point ``latest`` at it, and return it.

    Args:
        qsae_dir: The directory that holds ``runs/`` and ``latest``.
        measurements: The rows of its cells, by cell id.

    Raises:
        QsaeError: The folder can't be written; nothing half-written is left.
    """
    runs = qsae_dir / "runs"
    folder = runs / document.run_id
    try:
        runs.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=runs))
        try:
            (part / DOCUMENT).write_text(text_of(document), encoding="utf-8")
            (part / ROWS_DIR).mkdir()
            for cell_id, measurement in measurements.items():
                write_rows(rows_path(part, cell_id), measurement)
            part.chmod(0o755)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise cannot_write(qsae_dir, error) from None
    point_latest(folder)
    return folder


def cannot_write(qsae_dir: Path, error: OSError) -> QsaeError:
    """Return the error for a run that can't be written: the directory, the cause and what to do."""
    return QsaeError(
        f"{qsae_dir}: the run can't be written: {error.strerror or error}; "
        "free space or name another place with --qsae-dir"
    )


def point_latest(folder: Path) -> None:
    """Point ``<qsae dir>/latest`` at this run, by a relative link: the directory can be moved.

    Raises:
        QsaeError: The link can't be made.
    """
    link = folder.parents[1] / "latest"
    fresh = link.with_name(f".latest-{secrets.token_hex(4)}")
    try:
        fresh.symlink_to(Path("runs") / folder.name, target_is_directory=True)
        try:
            os.replace(fresh, link)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise QsaeError(
            f"{folder} is written, but {link} can't point at it: {error.strerror or error}"
        ) from None
