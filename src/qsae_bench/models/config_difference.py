"""Compare two configs of a model: every key that changes what is computed, whatever the architecture.

Keys are not listed but left out: an unknown one that differs counts as a difference, because only the
model's code says what it does. Both configs have been read by transformers, which gives old and new names
of a key one form (``rope_theta``, ``rope_local_base_freq`` and ``rope_scaling`` are ``rope_parameters``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsae_bench.errors import QsaeError, did_you_mean, plain

WRITTEN_BY_TOOLS = frozenset({
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version",
    "quantization_config", "compression_config", "unsloth_fixed", "unsloth_version", "tokenizer_class",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_commit_hash",
})  # fmt: skip
"""who wrote the file and how its weights are stored: both are checked or chosen elsewhere"""

OUTPUT_AND_GENERATION = frozenset({
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits",
    "problem_type", "id2label", "label2id", "num_labels", "is_encoder_decoder", "chunk_size_feed_forward",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "cache_implementation", "do_sample", "temperature", "top_k", "top_p", "max_length", "min_length",
    "repetition_penalty", "pretraining_tp", "torchscript",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
})  # fmt: skip
"""what is returned and how text is generated: no pass of this suite does either by them (it takes BOS from
the model's own tokenizer, and its logits are the model's)"""

TRAINING = frozenset({
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "classifier_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "dropout", "activation_dropout",
    "layerdrop", "router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise",
    "gradient_checkpointing",
})  # fmt: skip
"""what only training does: weights are read, and every model is in its evaluation mode"""

IGNORED = WRITTEN_BY_TOOLS | OUTPUT_AND_GENERATION | TRAINING

PATTERNS = frozenset({"sliding_window_pattern", "_sliding_window_pattern"})
"""what ``layer_types`` is derived from where a config lacks it: ignored where it has it"""

MOST_NAMED = 3
"""differences that a message names; it counts the others"""


@dataclass(frozen=True)
class ConfigDifference:
    """Hold one key that a checkpoint's config has otherwise than the reference's."""

    name: str
    """its place: ``rms_norm_eps``, ``rope_parameters.full_attention.rope_theta``, ``layer_types.3``"""
    found: Any
    """None where it is missing, as where it is null"""
    expected: Any

    def __str__(self) -> str:
        found = "missing" if self.found is None else plain(repr(self.found))
        expected = "null or missing" if self.expected is None else plain(repr(self.expected))
        return f"{plain(self.name)} is {found}, the reference's is {expected}"

    def is_named(self, names: Iterable[str]) -> bool:
        """Return whether an entry's ``differs`` names it, in full or by a part: ``rope_theta``."""
        return not {self.name, *self.name.split(".")}.isdisjoint(names)


def differences(found: Mapping[str, Any], reference: Mapping[str, Any]) -> list[ConfigDifference]:
    """Return in which computed keys a checkpoint's text config, as a dict, differs from the reference's.

    The kind of model comes first; where it differs nothing else is compared.
    """
    own, other = dict(_computed(found)), dict(_computed(reference))
    names = sorted(own.keys() | other.keys())
    every = [
        ConfigDifference(name, own.get(name), other.get(name))
        for name in names
        if not _same(own.get(name), other.get(name))
    ]
    return [one for one in every if one.name == "model_type"] or every


def refuse_or_allow(
    found: Iterable[ConfigDifference], allowed: Iterable[str], known: Mapping[str, Any]
) -> list[str]:
    """Return a line on the differences that an entry allows by ``differs``; refuse any other.

    Args:
        found: what :func:`differences` returned
        allowed: the entry's ``differs``
        known: the reference's config, whose keys ``differs`` may name

    Raises:
        QsaeError: a difference is not allowed, or ``differs`` names what no config has.
    """
    found, allowed = list(found), tuple(allowed)
    names = [*(name for name, _ in _flat(known, ())), *(one.name for one in found)]
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    for name in allowed:
        if name not in parts and name not in names:
            raise QsaeError(f"differs names {name!r}, which neither config has{did_you_mean(name, parts)}")
    refused = [one for one in found if not one.is_named(allowed)]
    if refused:
        key = refused[0].name.rpartition(".")[2]
        key = refused[0].name.partition(".")[0] if key.isdigit() else key
        raise QsaeError(
            f"{_listed(refused)}: its difference would be counted as the quantization's error; "
            f'if it is meant, say differs = ["{plain(key)}"] in the checkpoint\'s entry'
        )
    return [f"its config differs, as its entry allows: {_listed(found)}"] if found else []


def _listed(found: list[ConfigDifference]) -> str:
    rest = len(found) - MOST_NAMED
    return "; ".join(map(str, found[:MOST_NAMED])) + (f"; and {rest} more" if rest > 0 else "")


def _computed(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    ignored = IGNORED | (PATTERNS if config.get("layer_types") else frozenset())
    yield from _flat({key: value for key, value in config.items() if key not in ignored}, ())


def _flat(thing: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of everything in a config that is not a table or a list."""
    if isinstance(thing, Mapping):
        for key, value in thing.items():
            # a rope table of older files has its type under two names
            if key != "type" or thing.get("rope_type") != value:
                yield from _flat(value, (*path, str(key)))
    elif isinstance(thing, (list, tuple)):
        for index, value in enumerate(thing):
            yield from _flat(value, (*path, str(index)))
    else:
        yield ".".join(path), thing


def _same(one: Any, other: Any) -> bool:
    both = (one, other)
    if all(isinstance(value, float) and math.isnan(value) for value in both):
        return True
    return bool(one == other)
