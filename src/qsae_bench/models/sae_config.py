"""Hold an SAE's config against the place where it is put: each field is honoured, refused or noted.

sae-lens drops the fields that it does not know, and reads some of those it knows without applying them.
Such a field would change every number without a word. Pure functions on the config's JSON; docs/saes.md
lists the fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsae_bench.registry.sae_releases import short_name
from qsae_bench.registry.sae_spec import is_residual_after

TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
"""architectures that sae-lens trains and saves as another one"""
NORMALIZED_BY_FORWARD = ("none", "layer_norm", "constant_norm_rescale")
"""values of ``normalize_activations`` that sae-lens's forward applies"""
ESTIMATED_SCALE = "expected_average_only_in"
"""the value under which a scale was estimated while training, and must be in the weights"""
WITHOUT_EFFECT = {
    "fold_ln", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices", "dtype",
    "torch_dtype", "device", "n_ctx", "default_padding_side", "default_prepend_bos", "move_to_device",
    "n_devices", "low_cpu_mem_usage", "attn_implementation", "device_map",
}  # fmt: skip
"""options of TransformerLens's or transformers' loading under which the residual stream is the same"""
NO_VALUE: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class SaePlace:
    """Hold where an SAE is put: the model, the layer, and what the registry's entry says of it."""

    layer: int
    d_model: int
    d_sae: int = 0
    """number of features that the entry states; 0: it states none"""
    centered: bool = False
    """whether the SAE is given the residual stream minus its mean"""
    model_names: frozenset[str] = frozenset()
    """names of the model, as ``short_name`` writes them; empty: any name is accepted"""


def refusal(config: Mapping[str, Any], place: SaePlace, architectures: Collection[str]) -> str | None:
    """Return ``FIELD VALUE: why`` for the first field that can't be honoured; None if all can.

    Args:
        config: the content of cfg.json, of whatever version of sae-lens, or what a release is read as.
        place: where the SAE is put.
        architectures: what the installed sae-lens can load.
    """
    for check in (_architecture, _place, _model, _shape, _activation, _normalization):
        for why in check(_Stated(config), place, architectures):
            return why
    return None


def notes(config: Mapping[str, Any], sequence_length: int, starts_with_bos: bool) -> Iterator[str]:
    """Yield in what the SAE was trained on other text than it is measured on."""
    stated = _Stated(config)
    for _, value in stated.of("context_size"):
        if type(value) is int and 0 < value < sequence_length:
            yield (
                f"context_size {value}: it was trained on shorter sequences than the {sequence_length} "
                f"tokens that it is measured on; --sequence-length {value} measures it as it was trained"
            )
    for _, value in stated.of("prepend_bos"):
        if value is False and starts_with_bos:
            yield "prepend_bos False: it was trained on sequences without BOS, and these begin with one"
    for _, value in stated.of("seqpos_slice"):
        if isinstance(value, (list, tuple)) and set(value) - {None, 0}:
            yield f"seqpos_slice {list(value)}: it was trained on some positions, and is measured on all"


class _Stated:
    """Find a field at the config's top, where old versions have all, and in its metadata."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        metadata = config.get("metadata")
        self._levels = [config, *([metadata] if isinstance(metadata, Mapping) else [])]

    def of(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Yield (name, value) wherever one of the names stands with a value."""
        for level in self._levels:
            for name in names:
                if level.get(name) is not None:
                    yield name, level[name]

    def first(self, *names: str) -> Any:
        """Return the first value, or None."""
        return next((value for _, value in self.of(*names)), None)


Refused = Iterator[str]
"""``FIELD VALUE: why``, for each field that can't be honoured"""


def _architecture(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    for field, value in stated.of("architecture"):
        if value in TRAINING_ONLY:
            yield f"{field} {value!r}: a checkpoint of training: save it with save_inference_model"
        elif value not in architectures:
            known = ", ".join(sorted(architectures))
            yield f"{field} {value!r}: the installed sae-lens has no such architecture, only {known}"
    for field, value in stated.of("use_error_term"):
        if value is not False:
            yield f"{field} {value!r}: with its error added back an SAE has no error to measure"
    for field, value in stated.of("sae_diff_type"):
        if value not in ("relu", "topk"):
            yield f"{field} {value!r}: relu and topk are known"


def _place(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    here = f"the residual stream after block {place.layer} is read"
    places = ("hook_name", "hook_point")
    for field, value in stated.of(*(places if stated.first(*places) else ("hf_hook_name",))):
        if not isinstance(value, str) or not is_residual_after(value, place.layer):
            yield (
                f"{field}: it reads {value!r}, not 'blocks.{place.layer}.hook_resid_post': {here}, "
                "nothing else"
            )
    for field, value in stated.of(
        "hook_name_out", "hook_point_out", "hf_hook_name_out", "hook_names_out", "hook_names", "hook_points"
    ):
        if not isinstance(value, str) or not is_residual_after(value, place.layer):
            yield f"{field} {value!r}: a transcoder or crosscoder; {here} and reconstructed here"
    for field, value in stated.of("hook_layer", "hook_point_layer", "hook_layer_out"):
        at = stated.first("hook_name", "hook_point") or ""
        layers = {place.layer + 1} if at.endswith("hook_resid_pre") else {place.layer}
        if value not in layers:
            yield f"{field} {value!r}: another layer; {here}"
    for field, value in stated.of("hook_head_index", "hook_point_head_index", "hook_head_index_out"):
        yield f"{field} {value!r}: it reads one attention head; {here}"
    for field, value in stated.of("reshape_activations"):
        if value != "none":
            yield f"{field} {value!r}: it reads attention heads; {here}"


def _model(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    for field, value in stated.of("model_name"):
        if place.model_names and short_name(str(value)) not in place.model_names:
            named = " or ".join(sorted(place.model_names))
            yield f"{field} {value!r}: another model than {named}, and another model's SAEs give nonsense"
    for field, value in stated.of("model_from_pretrained_kwargs"):
        options = value if isinstance(value, Mapping) else {"": value}
        for option, given in options.items():
            yield from _loading_option(f"{field}.{option}", option, given, place)


def _loading_option(field: str, option: str, value: Any, place: SaePlace) -> Refused:
    if option == "center_writing_weights":
        if bool(value) is not place.centered:
            here = "true" if value else "false"
            yield f"{field} {value!r}: its entry (sae) needs centered = {here} for this SAE"
    elif option not in WITHOUT_EFFECT and value not in NO_VALUE:
        yield f"{field} {value!r}: it was trained on a model loaded otherwise"


def _shape(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    for field, value in stated.of("d_in"):
        if value != place.d_model:
            yield (
                f"{field} {value!r}, the model's width is {place.d_model}: this SAE was trained on another "
                "model"
            )
    if str(stated.first("architecture")).endswith("transcoder"):
        for field, value in stated.of("d_out"):
            if value != place.d_model:
                yield f"{field} {value!r}: it writes another width than the stream's {place.d_model}"
    for field, value in stated.of("d_sae"):
        if not _is_count(value) or place.d_sae not in (0, value):
            yield f"{field} {value!r}: the entry says {place.d_sae or 'a whole number'}"


def _activation(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    architecture = stated.first("architecture") or "standard"
    applied = {"relu", architecture.removesuffix("_skip_transcoder").removesuffix("_transcoder")}
    if isinstance(stated.first("activation_fn_kwargs"), Mapping) and _is_before_6(stated):
        applied.add("topk")  # sae-lens reads such a config as the architecture topk
    for field, value in stated.of("activation_fn", "activation_fn_str"):
        if value not in applied:
            yield f"{field} {value!r}: sae-lens {_applies(architecture)}"
    for field, value in stated.of("activation_fn_kwargs"):
        other = {key: one for key, one in dict(value).items() if key != "k" and one not in NO_VALUE}
        if other:
            yield f"{field} {value!r}: sae-lens {_applies(architecture)}"
    for field, value in stated.of("finetuning_scaling_factor"):
        if value is not False:
            yield f"{field} {value!r}: sae-lens does not apply a finetuned scale: multiply it into W_dec"
    for field, value in stated.of(
        "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "tied_weights", "stop_on_duplicate_support"
    ):
        if not isinstance(value, bool):
            yield f"{field} {value!r}: neither true nor false"
    d_sae = stated.first("d_sae")
    for field, value in stated.of("k", "kval_topk"):
        if not _is_count(value) or (_is_count(d_sae) and value > d_sae):
            yield f"{field} {value!r}: no number of features between 1 and {d_sae}"
    if architecture in ("topk", "abstopk") and stated.first("k", "activation_fn_kwargs") is None:
        yield "k: missing, and sae-lens would take 100"


def _is_before_6(stated: _Stated) -> bool:
    major = str(stated.first("sae_lens_version") or "0").partition(".")[0]
    return not major.isdigit() or int(major) < 6


def _applies(architecture: str) -> str:
    return f"applies no other activation function than that of the architecture {architecture!r}"


def _normalization(stated: _Stated, place: SaePlace, architectures: Collection[str]) -> Refused:
    architecture = str(stated.first("architecture"))
    for field, value in stated.of("normalize_activations"):
        if value is False or value == "none":
            continue
        if architecture.endswith("transcoder"):
            yield f"{field} {value!r}: sae-lens normalizes a transcoder's input and not its output"
        elif value == "constant_scalar_rescale" and architecture == "temporal":
            factor = stated.first("activation_normalization_factor")
            if not is_scale(factor):
                yield f"activation_normalization_factor {factor!r}: no positive number"
        elif value is not True and value not in (*NORMALIZED_BY_FORWARD, ESTIMATED_SCALE):
            yield f"{field} {value!r}: sae-lens's forward does not apply it: fold it into the weights"


def is_scale(value: Any) -> bool:
    """Return whether a JSON value is a number by which activations can be scaled."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
