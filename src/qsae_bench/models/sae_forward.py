"""Run an SAE as sae-lens's own forward does, and make sure of it on the first text that it reads.

An SAE's features are what it reconstructs from, none negative: f > 0 where one is active. Where ``forward``
is more than ``decode(encode(x))`` (a skip connection, predictions from earlier positions) the
reconstruction is what ``forward`` gives. A feature of either sign counts as two, as ReLU over [D, −D] would
have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE

NOT_NEGATIVE = {
    "standard", "gated", "jumprelu", "topk", "matching_pursuit", "temporal", "transcoder",
    "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
}  # fmt: skip
"""architectures whose features end in a ReLU; of another the features are taken to have either sign"""
POSITIONS = 128
"""so many of the first sequence are enough to see a difference, and cost little beside a batch"""
AGREEMENT = 1e-3
"""relative difference from sae-lens's own forward that rounding on a GPU can make, at most"""


def through(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [batch, length, features], not negative, and reconstruction of ``x``."""
    from sae_lens import SAE

    if hasattr(sae, "forward_with_activations"):  # transcoders, whose skip connection decode leaves out
        reconstruction, features = sae.forward_with_activations(x)
    elif type(sae).forward is SAE.forward and not sae.use_error_term:
        features = sae.encode(x)
        reconstruction = sae.decode(features)
    else:
        features, reconstruction = sae.encode(x), sae(x)
    return (_two_sided(features) if _is_signed(sae) else features), reconstruction


def decoder(sae: SAE[Any]) -> torch.Tensor:
    """Return the directions [features, d_model] that the features of :func:`through` are weights of."""
    import torch

    weight = sae.W_dec
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # its features have the norm in them
        weight = weight / weight.norm(dim=-1, keepdim=True)
    return torch.cat([weight, -weight]) if _is_signed(sae) else weight


def check_weights(sae: SAE[Any], named: str) -> None:
    """Refuse an SAE with weights that are not finite; ``named`` says which in the message."""
    import torch

    names, extremes = [], []
    for name, parameter in sae.named_parameters():
        names.append(name)
        extremes.append(torch.stack(torch.aminmax(parameter.float())))
    finite = torch.isfinite(torch.stack(extremes)).all(1).tolist()
    if bad := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
        raise QsaeError(f"{named}: {', '.join(bad)} has values that are not finite")


def check_forward(sae: SAE[Any], x: torch.Tensor, named: str) -> None:
    """Compare what is measured of an SAE with sae-lens's own forward and number of active features.

    It is meant for once an SAE, and takes only a part of ``x`` [batch, length, d_model], the first batch.

    Raises:
        QsaeError: they differ, or the SAE fails or gives values that are not finite on finite ones.
    """
    import torch

    some = x[:1, :POSITIONS]
    with torch.inference_mode():
        try:
            features, reconstruction = through(sae, some)
            own, active = sae(some), (sae.encode(some) != 0).sum()
        except Exception as error:
            from qsae_bench.models.memory import is_out_of_memory

            if is_out_of_memory(error):
                raise
            line = " ".join(str(error).split())
            raise QsaeError(f"{named} fails on activations: {type(error).__name__}: {line}") from None
        if own.shape != some.shape:
            raise QsaeError(
                f"{named}: makes {tuple(own.shape)} of activations {tuple(some.shape)}: it "
                "reconstructs something else than it reads"
            )
        norm = torch.linalg.vector_norm
        counted = (features > 0).sum()
        given, finite, same, equal = torch.stack(
            [
                some.isfinite().all(),
                own.isfinite().all() & features.isfinite().all(),
                norm(reconstruction - own) <= AGREEMENT * norm(own),
                (counted - active).abs() <= AGREEMENT * active,
            ]
        ).tolist()
    if not given:
        return  # the model's fault, and said of it
    if not finite:
        raise QsaeError(f"{named}: gives values that are not finite, on activations that are finite")
    if not same:
        raise QsaeError(f"{named}: its forward is not decode(encode(x)); it can't be measured")
    if not equal:
        raise QsaeError(f"{named}: {active} features differ from 0 and {counted} are above it")


def _two_sided(features: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([features, -features], dim=-1).clamp_min_(0)


def _is_signed(sae: SAE[Any]) -> bool:
    return sae.cfg.architecture() not in NOT_NEGATIVE
