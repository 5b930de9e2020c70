"""Tables of a TOML file as frozen dataclasses: unknown keys and wrong types refused, with file and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.specs import (
    Bounds,
    CheckpointSpec,
    CorpusSpec,
    ModelSpec,
    QuantizationSpec,
    SaeSpec,
)

if TYPE_CHECKING:
    from pydantic import ValidationError

Spec = TypeVar("Spec", ModelSpec, QuantizationSpec, CorpusSpec, SaeSpec, CheckpointSpec)


def shown(key: str) -> str:
    """A TOML key as a message shows it: quoted where it would break the line or the path."""
    return key if re.fullmatch(r"[\w.-]+", key) else repr(key)


_EXPECTED = {
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "text",
    "string_pattern_mismatch": "text",
    "bool_type": "true or false",
    "date_type": "a TOML date, without quotes: 2026-11-24",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""pydantic's type of error -> what the value has to be"""


def one_line(error: ValidationError, where: str, known: Collection[str] = ()) -> str:
    """Return in one line what is wrong with a table that pydantic refused.

    Args:
        error: what pydantic raised; an unknown key is reported before a wrong value.
        where: file and table, which begin the line.
        known: the keys that the table may have, for a "did you mean".
    """
    errors = error.errors(include_url=False, include_input=False)
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"{where}: missing {key}"
    expected = _EXPECTED.get(first["type"], f"valid ({first['msg']})").format(**first.get("ctx", {}))
    return f"{where}: {key} must be {expected}"


def read_toml(path: Path) -> dict[str, Any]:
    """The parsed file, or one line saying why it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QsaeError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise QsaeError(f"{path}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # also tomllib's own: a giant integer, deep nesting
        raise QsaeError(f"{path}: not valid TOML: {error}") from None


def named_entry(name: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The entry with its name, which is its table's and can't be given twice."""
    if "name" in entry:
        raise QsaeError(f"{where}: unknown key 'name': the table's own name is it")
    return {"name": name} | entry


def anchored(entry: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    """A path that starts with '.' is relative to the file that names it, not to where we run."""
    value = entry.get(key)
    if isinstance(value, str) and value.startswith("."):
        return entry | {key: str((folder / value).resolve())}
    return entry


def bounds_of(value: Any, where: str) -> Bounds:
    """``[min, max]`` as a closed range."""
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 2 or not value[0] <= value[1]:
        raise QsaeError(f"{where}: expected [min, max]")
    try:
        return Bounds(float(value[0]), float(value[1]))
    except OverflowError:
        raise QsaeError(f"{where}: expected [min, max], found an integer beyond any float") from None


_ACCEPTS: dict[Any, tuple[type, ...]] = {
    str: (str,), int: (int,), float: (int, float), bool: (bool,), SaeSpec: (SaeSpec,),
    SaeSpec | None: (SaeSpec,), str | None: (str,), tuple[int, ...]: (list,), tuple[str, ...]: (list,),
}  # fmt: skip


def build(kind: type[Spec], entry: Mapping[str, Any], where: str) -> Spec:
    """Check keys and types of one table against the dataclass, then build it."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in known:
            raise QsaeError(f"{where}: unknown key {key!r}{did_you_mean(key, set(known) - {'name'})}")
        accepted = _ACCEPTS.get(hints[key], (dict,))
        if type(value) not in accepted:
            names = " or ".join(t.__name__ for t in accepted)
            raise QsaeError(f"{where}: {key} must be {names}, not {type(value).__name__}")
        if isinstance(value, list):
            item = int if hints[key] == tuple[int, ...] else str
            if any(type(v) is not item for v in value):
                raise QsaeError(f"{where}: {key} must be a list of {item.__name__}")
            value = tuple(value)
        values[key] = value
    missing = [
        name for name, f in known.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]  # fmt: skip
    if missing:
        raise QsaeError(f"{where}: missing {', '.join(missing)}")
    return kind(**values)
