"""Choose and check the history's database URL. Does not import SQLAlchemy."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qsae_bench.errors import QsaeError

NO_HISTORY = "none"
VARIABLE = "QSAE_HISTORY"
SQLITE = "sqlite:///"
SERVER = re.compile(r"(?:postgresql|postgres)(?:\+psycopg)?://(?=.*[^/])", re.IGNORECASE | re.DOTALL)


def default_url(qsae_dir: Path) -> str:
    """Return the URL of the file beside the runs."""
    return f"{SQLITE}{qsae_dir.absolute() / 'history.sqlite'}"


def history_url(option: str, qsae_dir: Path) -> str:
    """Return the URL from ``--history``, else from the variable, else the default; '' for no history.

    Raises:
        QsaeError: It is not the URL of a supported database.
    """
    chosen = option.strip() or os.environ.get(VARIABLE, "").strip()
    if not chosen:
        return default_url(qsae_dir)
    if chosen.lower() == NO_HISTORY:
        return ""
    if sqlite_path(chosen) is None and not SERVER.match(chosen):
        where = "--history" if option.strip() else VARIABLE
        # the value is not shown: it may hold a password in a place where no URL has one
        raise QsaeError(
            f"{where}: not the URL of a history: {SQLITE}FILE, postgresql://USER@HOST/DATABASE, "
            f"or {NO_HISTORY}"
        )
    return chosen


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL, whose path is not quoted; None for any other URL."""
    if not url.lower().startswith(SQLITE) or not url[len(SQLITE) :] or "\0" in url:
        return None
    return Path(url[len(SQLITE) :])
