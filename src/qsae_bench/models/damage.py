"""Say in one line what a library raised while it read a model's files, and which file is damaged.

What a library raises over a damaged file seldom names it, and its first line may say nothing.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path

from qsae_bench.errors import first_line, plain
from qsae_bench.models.hub_errors import mask_tokens

CONFIG_FILES = ("config.json",)
TOKENIZER_PARTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")

SETTLED = (OSError, ValueError)
"""what transformers raises on purpose, in a sentence of its own"""


def described(error: BaseException) -> str:
    """Return in one line what a library or a user's function raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {mask_tokens(first_line(error))}{where}"


def reason(error: BaseException, folder: Path | None, patterns: tuple[str, ...]) -> str:
    """Return in one line why a library could not read those files of a folder.

    A file that is damaged for sure is named; otherwise it is what the library says.
    """
    if found := damaged_file(folder, patterns):
        return found
    if "\n" in str(error) and first_line(error).rstrip().endswith(":"):
        return mask_tokens(plain(str(error)))  # the first line announces the reason
    return mask_tokens(first_line(error)) if isinstance(error, SETTLED) else described(error)


def damaged_file(folder: Path | None, patterns: tuple[str, ...]) -> str:
    """Return the first of a folder's files that can't be what its name says, and why; "" for none."""
    if folder is None:
        return ""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            wrong = _wrong_weights(path) if path.suffix == ".safetensors" else _wrong_table(path)
            if wrong:
                return f"{path.name}: {wrong}"
    return ""


def _wrong_table(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"not valid JSON: {plain(str(error))}"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}, not a table"
    if path.name.endswith(".index.json") and not isinstance(content.get("weight_map"), dict):
        return "has no weight_map"
    return ""


def _wrong_weights(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        return f"damaged or cut short: {plain(str(error))}"
    return ""
