"""Write entries into a thresholds file as a person would: everything else of the file stays.

An entry that exists is replaced in place, and the comment behind it stays. A new entry comes after the last
entry of its table, and a new table after the last table of its cell or model: before the blank lines and
comments that head the next section. The result is read again and must hold exactly the old thresholds with
the changes.
"""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.gate.thresholds import TablePath, Threshold, Thresholds, parse_thresholds, toml_entry
from qsae_bench.results.threshold_update import BoundChange


def edited_text(text: str, changes: Sequence[BoundChange], where: str) -> str:
    """Return the text of a thresholds file with the changes in it; ``where`` is its name, for messages.

    Raises:
        QsaeError: The file writes an entry in a form that can't be edited in place.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    before = parse_thresholds(tomllib.loads(text), where)
    tables = {path: dict(entries) for path, entries in before.tables.items()}
    for change in changes:
        tables.setdefault(change.path, {})[change.new.metric] = change.new
    after = None
    crlf = "\n" in text and text.count("\r\n") == text.count("\n")
    try:
        document = tomlkit.parse(text.replace("\r\n", "\n") if crlf else text)
        new = [change for change in changes if not _replaced(document, change, before)]
        lines = tomlkit.dumps(document).split("\n")
        for change in new:
            _insert(lines, change)
        text = ("\r\n" if crlf else "\n").join(lines)
        after = parse_thresholds(tomllib.loads(text), where)
    except (TOMLKitError, ValueError, KeyError, TypeError, AttributeError, QsaeError):
        pass  # a form that tomlkit can't take apart, or puts together otherwise
    if after != Thresholds(tables):
        raise QsaeError(
            f"{where}: can't be edited in place: write each table as [model.quantization] and each entry "
            'as metric = { max = …, source = "…" } on a line of its own'
        )
    return text


def _rendered(threshold: Threshold) -> str:
    """Render an entry: ``{ max = 0.43, source = "2 × high", … }``."""
    import tomlkit

    values = (f"{key} = {tomlkit.item(value).as_string()}" for key, value in toml_entry(threshold).items())
    return "{ " + ", ".join(values) + " }"


def _replaced(document: Any, change: BoundChange, before: Thresholds) -> bool:
    """Replace an entry in a tomlkit document; False if there is none to replace."""
    import tomlkit

    metric = change.new.metric
    if metric not in before.tables.get(change.path, {}):
        return False
    for name in change.path:
        document = document[name]
    entry = document[metric]
    if isinstance(entry, tomlkit.items.Table):  # a table of its own: [tiny_gemma3.nf4.kl_divergence]
        wanted = toml_entry(change.new)
        for key in set(entry) - set(wanted):
            del entry[key]
        entry.update(wanted)
    else:
        document[metric] = tomlkit.parse(f"x = {_rendered(change.new)}")["x"]
    return True


def _insert(lines: list[str], change: BoundChange) -> None:
    """Insert a new entry after the last one of its table, or in a table of its own."""
    import tomlkit

    ends = _table_ends(lines)
    block = [f"{change.new.metric} = {_rendered(change.new)}"]
    last = ends.get(change.path)
    if last is None:
        name = ".".join(tomlkit.key(name).as_string() for name in change.path)
        block.insert(0, f"[{name}]")
        of_cell = [end for path, end in ends.items() if path[:2] == change.path[:2]]
        of_model = [end for path, end in ends.items() if path[:1] == change.path[:1]]
        if not of_cell:
            block.insert(0, "")
        not_blank = (number for number, line in enumerate(lines) if line.strip())
        last = max(of_cell or of_model or not_blank, default=-1)
    lines[last + 1 : last + 1] = block


def _table_ends(lines: Sequence[str]) -> dict[TablePath, int]:
    """Return the line of each table's last entry, or of its header if it has no entry."""
    ends: dict[TablePath, int] = {}
    path: TablePath = ()
    for number, line in enumerate(lines):
        if line.lstrip().startswith("["):
            path = _header(line) or path
        if path and line.strip() and not line.lstrip().startswith("#"):
            ends[path] = number
    return ends


@functools.cache
def _header(line: str) -> TablePath:
    """Return the path of a table's header; () if the line is a part of a longer value."""
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path: TablePath = ()
    while isinstance(found, dict) and found:
        ((name, found),) = found.items()
        path = (*path, name)
    return path


def replace_file(path: Path, text: str, before: bytes) -> None:
    """Replace the file, or the one that it links to, in one step; its mode stays.

    Args:
        before: The content that was read, which must still be there.

    Raises:
        QsaeError: The file can't be written, or was changed after it was read.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode & 0o7777
        if target.read_bytes() != before:
            raise QsaeError(f"{path}: was changed meanwhile, nothing is written: run it again")
        put(target, text.encode())
        target.chmod(mode)
    except OSError as error:
        raise QsaeError(f"{path}: can't be written: {error.strerror or error}") from None
