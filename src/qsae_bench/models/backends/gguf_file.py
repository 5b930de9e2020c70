"""Read what a GGUF says of its model: the bits of its weights, and what its runtime computes with.

transformers takes only the weights from the file; shape and names come from the model's own config. So the
file's values are compared with that config: another rope or window means another model.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.models.config_difference import ConfigDifference

ROPE = ("rope_parameters.full_attention", "rope_parameters")
"""places of a config that describe the rope of the layers that llama.cpp's keys are about"""

COMPARED: Mapping[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "rope.freq_base": tuple(f"{place}.rope_theta" for place in ROPE),
    "rope.scaling.type": tuple(f"{place}.rope_type" for place in ROPE),
    "rope.scaling.factor": tuple(f"{place}.factor" for place in ROPE),
    "rope.scaling.original_context_length": tuple(
        f"{place}.original_max_position_embeddings" for place in ROPE
    ),
}
"""llama.cpp's keys, without the architecture -> the config's, the first that it has

Sizes that the weights' shapes show are left out, and so is the longest context: nothing computes it."""

ROPE_TYPES = {"none": "default"}
"""llama.cpp's name -> transformers'"""


def differences(path: Path, reference: Mapping[str, Any]) -> list[ConfigDifference]:
    """Return in which values the file differs from the reference's text config, as a dict.

    Keys that the file or the config lacks are not compared.
    """
    reader, architecture = _opened(path)
    found = []
    for key, places in COMPARED.items():
        field = reader.fields.get(f"{architecture}.{key}")
        known = next(((place, value) for place in places for value in _at(reference, place)), None)
        if field is None or known is None:
            continue
        place, expected = known
        value = field.contents()
        value = ROPE_TYPES.get(value, value) if isinstance(value, str) else value
        if not _same(value, expected):
            found.append(ConfigDifference(place, value, expected))
    return found


def stored_in(path: Path) -> dict[str, int]:
    """Return for each of transformers' modules the bits of its weight in the GGUF, block scales included.

    Raises:
        QsaeError: the file is not a GGUF, or of an architecture without a list of names.
    """
    import gguf

    reader, architecture = _opened(path)
    try:
        blocks = int(reader.fields[f"{architecture}.block_count"].contents())
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise QsaeError(f"{path.name}: not a GGUF of a known architecture: {error}") from None
    bits = {tensor.name: 8 * int(tensor.n_bytes) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(arch, blocks).mapping
    return {
        name: bits[f"{tensor}.weight"] for name, (_, tensor) in names.items() if f"{tensor}.weight" in bits
    }


def _opened(path: Path) -> tuple[Any, str]:
    """Return a reader of the file, and its architecture."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        return reader, str(reader.fields["general.architecture"].contents())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise QsaeError(f"{path.name}: not a GGUF, or damaged: {error}") from None


def _at(config: Mapping[str, Any], place: str) -> Iterator[Any]:
    """Yield the value at a dotted place, if there is one that is not null."""
    value: Any = config
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is not None:
        yield value


def _same(value: Any, expected: Any) -> bool:
    """Compare as the file stores: its numbers are float32."""
    if isinstance(value, float) and isinstance(expected, (int, float)):
        return value == struct.unpack("f", struct.pack("f", expected))[0]
    if isinstance(value, list):  # one a layer
        return all(_same(one, expected) for one in value)
    return bool(value == expected)
