"""Where the history lives: a database URL, checked, and never shown with its password. No SQLAlchemy."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qsae_bench.errors import QsaeError

NONE = "none"
VARIABLE = "QSAE_HISTORY"
SQLITE = "sqlite:///"
SERVER = re.compile(r"(?:postgresql|postgres)(?:\+psycopg)?://(?=.*[^/])", re.IGNORECASE | re.DOTALL)


def default_url(qsae_dir: Path) -> str:
    """The file beside the runs."""
    return f"{SQLITE}{qsae_dir.absolute() / 'history.sqlite'}"


def history_url(option: str, qsae_dir: Path) -> str:
    """What ``--history``, else the variable, else the default says; '' where no history is wanted.

    Raises:
        QsaeError: not a URL of a database that the history can live in.
    """
    chosen = option.strip() or os.environ.get(VARIABLE, "").strip()
    if not chosen:
        return default_url(qsae_dir)
    if chosen.lower() == NONE:
        return ""
    if sqlite_path(chosen) is None and not SERVER.match(chosen):
        where = "--history" if option.strip() else VARIABLE
        # what was given is not shown: it may hold a password, in a place where no URL has it
        raise QsaeError(
            f"{where}: not the URL of a history: {SQLITE}FILE, postgresql://USER@HOST/DATABASE, or {NONE}"
        )
    return chosen


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL; what follows ``sqlite:///`` is its path as it stands."""
    if not url.lower().startswith(SQLITE) or not url[len(SQLITE) :] or "\0" in url:
        return None
    return Path(url[len(SQLITE) :])
