"""Write entries into a thresholds file as a person would: everything else of the file stays.

An entry that exists is replaced in place, and the comment behind it stays. A new entry comes after the last
one of its table, and a new table at the end of the file. The result is read again and must hold exactly the
old thresholds with the changes.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.gate.threshold_file import parse_thresholds, toml_entry
from qsae_bench.gate.thresholds import TablePath, Thresholds
from qsae_bench.results.threshold_update import BoundChange


def edited_text(text: str, changes: Sequence[BoundChange], where: str) -> str:
    """Return the text of a thresholds file with the changes in it; ``where`` is its name, for messages.

    Raises:
        QsaeError: The file writes an entry in a form that can't be edited in place.
    """
    from tomlkit.exceptions import TOMLKitError

    before = parse_thresholds(tomllib.loads(text), where)
    tables = {path: dict(entries) for path, entries in before.tables.items()}
    for change in changes:
        tables.setdefault(change.path, {})[change.new.metric] = change.new
    after = None
    try:
        text = _written(text, changes)
        after = parse_thresholds(tomllib.loads(text), where)
    except (TOMLKitError, ValueError, KeyError, TypeError, AttributeError, QsaeError):
        pass  # a form that tomlkit can't take apart, or puts together otherwise
    if after != Thresholds(tables):
        raise QsaeError(
            f"{where}: can't be edited in place: write each table as [model.quantization] and each entry "
            'as metric = { max = …, source = "…" } on a line of its own'
        )
    return text


def _written(text: str, changes: Sequence[BoundChange]) -> str:
    import tomlkit
    from tomlkit.items import Table

    document, line_end = tomlkit.parse(text), "\r\n" if "\r\n" in text else "\n"
    new: dict[TablePath, list[str]] = {}
    for change in changes:
        metric, entry = change.new.metric, toml_entry(change.new)
        values = ", ".join(f"{key} = {tomlkit.item(value).as_string()}" for key, value in entry.items())
        table = _table(document, change.path)
        if metric not in table:
            new.setdefault(change.path, []).append(f"{metric} = {{ {values} }}")
        elif isinstance(old := table[metric], Table):  # its own: [tiny_gemma3.nf4.kl_divergence]
            for key in set(old) - set(entry):
                del old[key]
            old.update(entry)
        else:
            table[metric] = tomlkit.value(f"{{ {values} }}")
    end = []
    for path, lines in new.items():
        table = _table(document, path)
        rows = [table] if isinstance(table, Table) and not table.is_super_table() else []
        rows += [item for item in table.values() if not isinstance(item, Table)]
        if rows:  # assigned to the table, it would stand below the comment that heads the next one
            rows[-1].trivia.trail = line_end.join(["", *lines]) + rows[-1].trivia.trail
        else:
            end += ["", f"[{'.'.join(tomlkit.key(name).as_string() for name in path)}]", *lines]
    text = tomlkit.dumps(document)
    return text.rstrip("\r\n") + line_end.join(["", *end, ""]) if end else text


def _table(document: Any, path: TablePath) -> Any:
    for name in path:
        document = document.get(name, {})
    return document


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
