"""A random SAE of any architecture is measured as sae-lens itself measures it, or refused in one line."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import any_sae
import stand_ins
from any_sae import LAYER
from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.sae_forward import check_forward
from qsae_bench.models.saes import load_saes
from qsae_bench.stats.bootstrap import estimate

KEYS = itertools.count()
ANY = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def models():
    """A reference, a damaged copy, a corpus, and the copy's residual stream after the layer."""
    reference, corpus = stand_ins.gemma3(), stand_ins.corpus()
    other = stand_ins.damaged(reference, 0.05)
    with torch.no_grad():
        out = other(input_ids=torch.from_numpy(corpus.ids), output_hidden_states=True)
    return reference, other, corpus, out.hidden_states[LAYER + 1]


@pytest.fixture
def measure(models, paired, tmp_path):
    """``measure(config, weights, scale)`` -> (what is refused, estimates of the layer, its folder)."""
    reference, other, corpus, x = models

    def run(config, weights, scale=None):
        root = tmp_path / str(next(KEYS))
        folder = any_sae.write(root, config, weights, scale)
        try:
            saes = load_saes(any_sae.spec(root), "cpu")
            check_forward(saes[LAYER], x, "this SAE")
        except QsaeError as error:
            return one_line(error), None, folder
        measurement, _ = paired(reference, other, corpus, saes)
        return None, estimate(measurement, replicates=8).layers[LAYER], folder

    return run


def test_every_architecture_that_sae_lens_loads_is_drawn():
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    assert set(SAE_CLASS_REGISTRY) == set(any_sae.LOADED)
    assert set(SAE_TRAINING_CLASS_REGISTRY) - set(SAE_CLASS_REGISTRY) == set(any_sae.TRAINED)


def agrees(measure, models, config, seed, scale):
    """Measure an SAE, and compare with sae-lens unless it is refused; return why it is."""
    why, estimates, folder = measure(config, any_sae.weights(config, seed), scale)
    if why is not None:
        assert f"SAE of layer {LAYER} ({folder})" in why or "this SAE" in why
        return why
    _, _, corpus, x = models
    fvu, l0 = any_sae.by_sae_lens(folder, x, corpus.valid, scale)
    assert estimates["fvu"].value == pytest.approx(fvu, rel=1e-5)
    assert estimates["l0"].value == pytest.approx(l0, rel=1e-5)
    return None


@pytest.mark.parametrize("architecture", any_sae.LOADED)
def test_a_plain_one_is_measured_as_sae_lens_does(measure, models, architecture):
    assert agrees(measure, models, any_sae.config(architecture), 3, None) is None


@pytest.mark.slow
@settings(ANY, max_examples=150)
@given(config=any_sae.configs(), seed=st.integers(0, 99), scale=st.sampled_from([None, 0.2, 3.0]))
def test_any_is_measured_as_sae_lens_does_or_refused(measure, models, config, seed, scale):
    if config["architecture"] not in any_sae.LOADED:
        weights = any_sae.weights(any_sae.config("standard"), seed)
        why, *_ = measure(config, weights, scale)
        assert f"architecture {config['architecture']!r}" in why
        return
    why = agrees(measure, models, config, seed, scale)
    event("measured" if why is None else "refused")


FEATURE_METRICS = (
    "fvu", "l0", "l0_ratio", "feature_jaccard", "feature_survival", "feature_survival_weighted",
    "feature_correlation_p50", "features_eligible", "decoded_drift",
)  # fmt: skip


def check_same_metrics(measure, one, other):
    """Both are measured, and alike."""
    (why, ours, _), (also_why, theirs, _) = measure(*one), measure(*other)
    assert (why, also_why) == (None, None)
    for key in FEATURE_METRICS:
        assert theirs[key].value == pytest.approx(ours[key].value, rel=1e-5, abs=1e-9), key


def test_features_scaled_against_their_directions(measure):
    """f_j and d_j are one product: an SAE whose decoder's norms are folded into the encoder is the same."""
    config = any_sae.config("jumprelu")
    made = any_sae.weights(config)
    scale = torch.linspace(0.1, 10, any_sae.FEATURES)
    scaled = made | {
        "W_enc": made["W_enc"] * scale, "b_enc": made["b_enc"] * scale,
        "threshold": made["threshold"] * scale, "W_dec": made["W_dec"] / scale[:, None],
    }  # fmt: skip
    check_same_metrics(measure, (config, made), (config, scaled))


def test_topk_rescaled_by_the_decoders_norms_and_with_them_folded_in(measure):
    rescaled = any_sae.config("topk", rescale_acts_by_decoder_norm=True)
    made = any_sae.weights(rescaled)
    made["W_dec"] *= torch.linspace(0.2, 3, any_sae.FEATURES)[:, None]
    norms = made["W_dec"].norm(dim=1)
    folded = made | {
        "W_enc": made["W_enc"] * norms, "b_enc": made["b_enc"] * norms, "W_dec": made["W_dec"] / norms[:, None],
    }  # fmt: skip
    check_same_metrics(measure, (rescaled, made), (any_sae.config("topk"), folded))


def test_features_of_either_sign_and_relu_over_both_directions(measure):
    signed = any_sae.config("abstopk")
    made = any_sae.weights(signed)
    doubled = {
        "W_enc": torch.cat([made["W_enc"], -made["W_enc"]], dim=1),
        "b_enc": torch.cat([made["b_enc"], -made["b_enc"]]),
        "W_dec": torch.cat([made["W_dec"], -made["W_dec"]]), "b_dec": made["b_dec"],
    }  # fmt: skip
    twice = any_sae.config("topk", d_sae=2 * any_sae.FEATURES)
    check_same_metrics(measure, (signed, made), (twice, doubled))


def test_a_scale_beside_the_weights_and_folded_into_them(measure):
    """x·s goes in, and the reconstruction is divided by s: with s in the weights nothing is left to do."""
    scale = 0.37
    unfolded = any_sae.config("jumprelu", normalize_activations="expected_average_only_in")
    made = any_sae.weights(unfolded)
    folded = made | {
        "W_enc": made["W_enc"] * scale,
        "W_dec": made["W_dec"] / scale,
        "b_dec": made["b_dec"] / scale,
    }
    check_same_metrics(measure, (unfolded, made, scale), (any_sae.config("jumprelu"), folded))
    why, *_ = measure(unfolded, made, None)
    assert "normalize_activations 'expected_average_only_in'" in why
    assert "fold it in" in why


def test_a_skip_connection_that_is_the_identity_reconstructs_all(measure):
    config = any_sae.config("skip_transcoder")
    made = any_sae.weights(config)
    made |= {key: torch.zeros_like(made[key]) for key in ("W_dec", "b_dec")}
    why, estimates, _ = measure(config, made | {"W_skip": torch.eye(any_sae.WIDTH)})
    assert why is None
    assert estimates["fvu"].value == pytest.approx(0.0, abs=1e-12)
