"""The run that just ended into the history. The run itself is kept already, whatever happens here."""

from __future__ import annotations

from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.results.document import RunDocument


def keep(url: str, document: RunDocument, folder: Path) -> str:
    """Add the run of ``folder``, and the tables where there are none; '' or one line of why it can't be."""
    from qsae_bench.results.history.store import History

    try:
        with History.open(url, create=True) as history:
            history.add(document)
    except QsaeError as error:
        place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return (
            f"{error}; the run is kept: `qsae-bench history import {place}` adds it later, with the same "
            "--history"
        )
    return ""
