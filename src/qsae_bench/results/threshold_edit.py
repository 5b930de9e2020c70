"""Writing entries into a thresholds file as a person would: nothing else of it moves.

An entry that is there is replaced in place, with the comment behind it kept. A new one comes after the last
entry of its table, a new table after the last of its kin: before the blank lines and the comments that head
the next section. What comes out is read again and must hold exactly the old thresholds with the changes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.files import put_file
from qsae_bench.gate.thresholds import TablePath, Threshold, Thresholds, parse_thresholds, toml_entry
from qsae_bench.results.threshold_update import BoundChange


def edited(text: str, changes: Sequence[BoundChange], where: str) -> str:
    """The text of a thresholds file with the changes in it.

    Raises:
        QsaeError: the file writes an entry in a form that can't be edited in place.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    before = parse_thresholds(tomllib.loads(text), where)
    after = None
    try:
        document = tomlkit.parse(text)
        added: dict[TablePath, list[str]] = {}
        for change in changes:
            if change.new.metric in before.tables.get(change.path, {}):
                _replace(document, change)
            else:
                added.setdefault(change.path, []).append(f"{change.new.metric} = {_rendered(change.new)}")
        text = _inserted(tomlkit.dumps(document), added)
        after = parse_thresholds(tomllib.loads(text), where)
    except (TOMLKitError, ValueError, KeyError, TypeError, AttributeError, QsaeError):
        pass  # a form that tomlkit can't take apart, or puts together otherwise
    if after != _expected(before, changes):
        raise QsaeError(
            f"{where}: can't be edited in place: write each table as [model.quantization] and each entry "
            'as metric = { max = …, source = "…" } on a line of its own'
        )
    return text


def _expected(before: Thresholds, changes: Sequence[BoundChange]) -> Thresholds:
    tables = {path: dict(entries) for path, entries in before.tables.items()}
    for change in changes:
        tables.setdefault(change.path, {})[change.new.metric] = change.new
    return Thresholds(tables)


def _rendered(threshold: Threshold) -> str:
    """``{ max = 0.43, source = "2 × high", … }``."""
    import tomlkit

    values = (f"{key} = {tomlkit.item(value).as_string()}" for key, value in toml_entry(threshold).items())
    return "{ " + ", ".join(values) + " }"


def _replace(document: Any, change: BoundChange) -> None:
    import tomlkit

    for name in change.path:
        document = document[name]
    entry = document[change.new.metric]
    if not isinstance(entry, tomlkit.items.Table):
        document[change.new.metric] = tomlkit.parse(f"x = {_rendered(change.new)}")["x"]
        return
    wanted = toml_entry(change.new)  # a table of its own: [tiny_gemma3.nf4.kl_divergence]
    for key in set(entry) - set(wanted):
        del entry[key]
    for key, value in wanted.items():
        entry[key] = value


def _inserted(text: str, added: Mapping[TablePath, list[str]]) -> str:
    """The text with new lines, each table's after its last entry, or in a table of its own."""
    import tomlkit

    ends = _ends(text)
    lines = text.split("\n")
    blocks: list[tuple[int, int, int, list[str]]] = []
    begun: set[TablePath] = set()
    for number, (path, entries) in enumerate(added.items()):
        if path in ends:
            blocks.append((ends[path], 0, number, entries))
            continue
        block = ["[" + ".".join(tomlkit.key(name).as_string() for name in path) + "]", *entries]
        kin = [end for known, end in ends.items() if known[:2] == path[:2]]
        near = [end for known, end in ends.items() if known[:1] == path[:1]]
        if not kin and path[:2] not in begun:  # the first of this cell: a paragraph of its own
            block.insert(0, "")
        begun.add(path[:2])
        # behind the same line, what belongs to the table there comes first
        blocks.append((max(kin or near, default=_last(lines)), 1 if kin else 2, number, block))
    carriage = "\r" if "\r\n" in text else ""
    lines[-1] += carriage if lines[-1] else ""
    for at, _, _, block in sorted(blocks, reverse=True):  # from the end: line numbers above stay right
        lines[at + 1 : at + 1] = [line + carriage for line in block]
    return "\n".join(lines).removesuffix("\r")


def _last(lines: list[str]) -> int:
    """The last line that is not blank."""
    return max((index for index, line in enumerate(lines) if line.strip()), default=-1)


def _ends(text: str) -> dict[TablePath, int]:
    """The line of each table's last entry, or of its header where it has none.

    tomlkit has no positions: it is given a copy in which each of these lines ends in a comment of ours.
    """
    import tomlkit

    document = tomlkit.parse(text)
    found: dict[TablePath, Any] = {}
    _collect(document.body, (), found)
    mark = f"qsae-{secrets.token_hex(8)}"
    for number, item in enumerate(found.values()):
        item.comment(f"{mark}-{number}.")
    lines = tomlkit.dumps(document).split("\n")
    at = {line.rpartition(mark)[2].strip(): index for index, line in enumerate(lines) if mark in line}
    return {path: at[f"-{number}."] for number, path in enumerate(found)}


def _collect(body: Any, path: TablePath, found: dict[TablePath, Any]) -> None:
    """The last entry of every table in a tomlkit body, in ``found``."""
    import tomlkit

    for key, item in body:
        if key is None:
            continue
        if isinstance(item, tomlkit.items.Table):
            inner = (*path, key.key)
            if not item.is_super_table():
                found.setdefault(inner, item)
            _collect(item.value.body, inner, found)
        elif path:
            found[path] = item


def write(path: Path, text: str, before: bytes) -> None:
    """Replace the file, or the one that it links to, in one step; its mode stays.

    Raises:
        QsaeError: it can't be written, or is no longer what it was when it was read (``before``).
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        try:
            with part.open("xb") as file:
                file.write(text.encode())
            part.chmod(target.stat().st_mode & 0o7777)
            if target.read_bytes() != before:
                raise QsaeError(f"{path}: was changed meanwhile, nothing is written: run it again")
            put_file(part, target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise QsaeError(f"{path}: can't be written: {error.strerror or error}") from None
