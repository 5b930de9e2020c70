"""Name what no model that still works shows, whatever was judged. Pure.

A reference has bounds in its registry entry, and is invalid beyond them. Of a quantized cell every selected
gate may be green although the model is broken, where the gates that would see it were not selected. It is
not invalid either: that a quantization ruins a model is a finding. So it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qsae_bench.metrics import GROUPS
from qsae_bench.metrics.features import ELIGIBLE_POSITIONS, FEWEST_ELIGIBLE
from qsae_bench.registry.sae_spec import Bounds
from qsae_bench.stats.bootstrap import Estimate

SANE: Mapping[str, Bounds] = MappingProxyType(
    {"kl_divergence": Bounds(0.0, 1.0), "top1_agreement": Bounds(0.2, 1.0)}
)
"""metric -> what a quantization that left anything of the model has. 2 bits a weight, rounded to nearest,
give the embedded model 1.4 nats and 0.48; a residual that is moved by a position 11 nats and 0.02"""

UNEXPLAINED = 1.0
"""FVU of an SAE that is no better than the mean activation"""

BY_SAE = frozenset({*GROUPS["reconstruction"], *GROUPS["features"], *GROUPS["splice"]})
"""metrics that say nothing where the SAE explains nothing"""


def signs_of_ruin(values: Mapping[str, float]) -> list[str]:
    """Return what shows that a quantized cell is no working model: ``kl_divergence 11.4``."""
    found = {key: values[key] for key in SANE if key in values}
    return [f"{key} {value:.3g}" for key, value in found.items() if not SANE[key].contains(value)]


def why_unexplained(metric: str, reference: Mapping[str, Estimate]) -> str:
    """Return why an SAE metric of a layer says nothing, or ''; ``reference`` has the layer's estimates."""
    fvu = reference.get("fvu")
    if metric not in BY_SAE or fvu is None or fvu.value < UNEXPLAINED:
        return ""
    l0 = f", l0 {reference['l0'].value:.3g}" if "l0" in reference else ""
    return f"the SAE explains nothing of the reference (fvu {fvu.value:.4g}{l0}): is it this model's?"


def why_too_few(layer: Mapping[str, Estimate]) -> str:
    """Return why so few features were eligible that nothing is said of them, or ''."""
    found = layer.get("features_eligible")
    if found is None or found.value >= FEWEST_ELIGIBLE:
        return ""
    return (
        f"{found.value:.0f} features are active on {ELIGIBLE_POSITIONS} positions of the reference, and "
        f"{FEWEST_ELIGIBLE} are needed: measure more tokens, or the SAE is nearly dead"
    )
