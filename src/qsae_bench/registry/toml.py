"""Read TOML files, with messages of one line that name the file and the key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError, did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError


def quoted_key(key: str) -> str:
    """Return a TOML key as a message prints it: quoted where it would break the line or the path."""
    return key if re.fullmatch(r"[\w.-]+", key) else repr(key)


_EXPECTED = {
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "text",
    "string_pattern_mismatch": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_exact_type": "a table",
    "date_type": "a TOML date, without quotes: 2026-11-24",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""pydantic's type of error -> what the value has to be"""


def what_is_wrong(error: ValidationError, where: str, known: Collection[str] = ()) -> str:
    """Return in one line what is wrong with a table that pydantic refused, an unknown key first.

    ``where`` is file and table, which begin the line; ``known`` are the keys that the table may have.
    """
    errors = error.errors(include_url=False, include_input=False)
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"{where}: missing {key}"
    expected = _EXPECTED.get(first["type"], f"valid ({first['msg']})").format(**first.get("ctx", {}))
    shown = ".".join(quoted_key(str(part)) for part in first["loc"])
    return f"{where}: {shown} must be {expected}"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the parsed file, or raise a QsaeError that says why it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QsaeError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise QsaeError(f"{path}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # also tomllib's own: a giant integer, deep nesting
        raise QsaeError(f"{path}: not valid TOML: {error}") from None
