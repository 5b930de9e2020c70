"""The paired pass against independent recomputations: transformers' own loss, float64 NumPy, sae-lens,
scikit-learn, statsmodels and a plain hook. None of them shares code with the package."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import stand_ins
from qsae_bench.metrics import features as feature_metrics
from qsae_bench.models.taps import Head
from qsae_bench.stats.bootstrap import estimate

SIDES = ("r", "q")


@pytest.fixture(scope="module")
def full(setting):
    """Every activation and logit, whole, in float64: what the pass never holds."""
    found = {}
    ids = torch.from_numpy(setting["corpus"].ids)
    for side in SIDES:
        with torch.no_grad():
            out = setting[side](input_ids=ids, output_hidden_states=True)
        found[side] = {"logits": out.logits.double().numpy()}
        for layer, sae in setting["saes"].items():
            x = out.hidden_states[layer + 1]
            with torch.no_grad():
                f = sae.encode(x)
                x_hat = sae.decode(f)
            found[side][layer] = [t.double().numpy() for t in (x, f, x_hat)]
    return found


@pytest.fixture
def estimates(setting, paired):
    measurement, _ = paired(setting["r"], setting["q"], setting["corpus"], setting["saes"])
    return estimate(measurement, replicates=50)


def scored(corpus):
    return corpus.valid[:, 1:]


def softmax64(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_cross_entropy_is_transformers_own_loss(setting, paired):
    corpus = stand_ins.corpus()
    corpus.ids[corpus.ids == 1] = 7  # transformers scores every position: leave no special token
    corpus = dataclasses.replace(corpus, valid=corpus.ids != stand_ins.BOS, fingerprint="plain")
    measurement, _ = paired(setting["r"], setting["q"], corpus, setting["saes"])
    found = estimate(measurement, replicates=10)
    ids = torch.from_numpy(corpus.ids)
    with torch.no_grad():
        own = {side: setting[side](input_ids=ids, labels=ids).loss.item() for side in SIDES}
    assert found.cell["cross_entropy"].value == pytest.approx(own["q"], rel=1e-6)
    assert found.cell["cross_entropy_delta"].value == pytest.approx(own["q"] - own["r"], abs=5e-6)
    expected = 100 * (np.exp(own["q"] - own["r"]) - 1)
    assert found.cell["perplexity_increase_pct"].value == pytest.approx(expected, abs=5e-4)
    expected = 100 * (own["q"] - own["r"]) / own["r"]
    assert found.cell["cross_entropy_delta_pct"].value == pytest.approx(expected, abs=1e-4)


def test_output_distribution_against_whole_float64_logits(setting, full, estimates):
    corpus = setting["corpus"]
    mask = scored(corpus)
    targets = corpus.ids[:, 1:][mask]
    p = {side: softmax64(full[side]["logits"])[:, :-1][mask] for side in SIDES}
    kl = (p["r"] * (np.log(p["r"]) - np.log(p["q"]))).sum(-1)
    cell = estimates.cell
    assert cell["kl_divergence"].value == pytest.approx(kl.mean(), rel=1e-6)
    for key, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
        expected = np.quantile(kl, q, method="inverted_cdf")
        assert cell[f"kl_divergence_{key}"].value == pytest.approx(expected, rel=1e-4), key
    top = {side: p[side].argmax(-1) for side in SIDES}
    right = {side: top[side] == targets for side in SIDES}
    assert cell["top1_agreement"].value == pytest.approx((top["r"] == top["q"]).mean(), abs=1e-12)
    assert cell["flips_to_wrong"].value == pytest.approx((right["r"] & ~right["q"]).mean(), abs=1e-12)
    assert cell["flips_to_right"].value == pytest.approx((right["q"] & ~right["r"]).mean(), abs=1e-12)
    at = np.arange(len(targets))
    delta = p["q"][at, targets] - p["r"][at, targets]
    assert cell["delta_p_mean"].value == pytest.approx(delta.mean(), rel=1e-4)
    assert cell["delta_p_rms"].value == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-5)
    nll = -np.log(p["q"][at, targets])
    assert cell["cross_entropy"].value == pytest.approx(nll.mean(), rel=1e-6)


def test_mcnemar_against_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    from qsae_bench.metrics.measurement import Rows
    from qsae_bench.stats.bootstrap import mcnemar_p

    for wrong, right in [(0, 0), (5, 1), (40, 22), (300, 301), (9, 9)]:
        rows = Rows({"flip_wrong": np.array([wrong, 0.0]), "flip_right": np.array([0.0, right])})
        expected = mcnemar([[100, wrong], [right, 100]], exact=True).pvalue
        assert mcnemar_p(rows) == pytest.approx(min(expected, 1.0), rel=1e-9)


@pytest.mark.parametrize("layer", stand_ins.LAYERS)
def test_reconstruction_against_numpy(setting, full, estimates, layer):
    valid = setting["corpus"].valid
    x_r, _, hat_r = (t[valid] for t in full["r"][layer])
    x, f, hat = (t[valid] for t in full["q"][layer])
    x_bos, _, hat_bos = (t.reshape(-1, t.shape[-1]) for t in full["q"][layer])

    def error(a, b):
        return ((a - b) ** 2).sum()

    fvu = error(x, hat) / error(x, x.mean(0))
    fvu_r = error(x_r, hat_r) / error(x_r, x_r.mean(0))
    expected = {
        "fvu": fvu,
        "fvu_drift": fvu - fvu_r,
        "fvu_fixed": error(x, hat) / error(x_r, x_r.mean(0)),
        "fvu_scalar": error(x, hat) / error(x, x.mean()),
        "fvu_scalar_bos": error(x_bos, hat_bos) / error(x_bos, x_bos.mean()),
        "mse": ((x - hat) ** 2).mean(),
        "fvu_denominator": error(x, x.mean(0)),
        "l0": (f > 0).sum(-1).mean(),
        "l2_ratio": np.linalg.norm(hat, axis=1).mean() / np.linalg.norm(x, axis=1).mean(),
        "reconstruction_cosine": (
            (x * hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(hat, axis=1)
        ).mean(),
    }
    for key, value in expected.items():
        found = estimates.layers[layer][key].value
        assert found == pytest.approx(value, rel=2e-6, abs=2e-6), key


@pytest.mark.parametrize("layer", stand_ins.LAYERS)
def test_residual_and_cross_terms_against_numpy(setting, full, estimates, layer):
    valid = setting["corpus"].valid
    x_r, _, hat_r = (t[valid] for t in full["r"][layer])
    x_q, _, hat_q = (t[valid] for t in full["q"][layer])
    variance = ((x_r - x_r.mean(0)) ** 2).sum(1).mean()
    nsr = ((x_q - x_r) ** 2).sum(1).mean() / variance
    norms = np.linalg.norm(x_q, axis=1) * np.linalg.norm(x_r, axis=1)
    expected = {
        "perturbation_nsr": nsr,
        "perturbation_rel_l2": np.linalg.norm(x_q - x_r) / np.linalg.norm(x_r),
        "perturbation_token_l2": np.linalg.norm(x_q - x_r, axis=1).mean(),
        "mean_shift": ((x_q.mean(0) - x_r.mean(0)) ** 2).sum() / variance,
        "residual_cosine": ((x_q * x_r).sum(1) / norms).mean(),
        "resolution_ratio": nsr / (((x_r - hat_r) ** 2).sum(1).mean() / variance),
        "cross_fvu": ((x_r - hat_q) ** 2).sum(1).mean() / variance,
        "decoded_drift": ((hat_q - hat_r) ** 2).sum(1).mean() / variance,
    }
    for key, value in expected.items():
        assert estimates.layers[layer][key].value == pytest.approx(value, rel=5e-6), key


@pytest.fixture(scope="module")
def planted():
    """A model with a token whose residual is long, and a cell in which one such position is not, and one
    other is: ``at`` are theirs (sequence, position)."""
    corpus = stand_ins.corpus(16, 24, batch_size=5)
    corpus.ids[corpus.ids == 8] = 9
    corpus.ids[3, 6] = corpus.ids[9, 15] = 7
    corpus.ids[12, 20] = 8  # only there
    r = stand_ins.gemma3(tie_word_embeddings=False)
    with torch.no_grad():
        r.model.embed_tokens.weight[7] *= 300
    q = stand_ins.damaged(r, 0.02)
    with torch.no_grad():
        q.model.embed_tokens.weight[8] *= 300
    saes = {layer: stand_ins.jumprelu(layer) for layer in stand_ins.LAYERS}
    return corpus, r, q, saes


def directly(x, hat, mask):
    """The metrics over the positions of ``mask`` from whole activations, by side."""

    def fvu(side):
        at, error = x[side][mask], (x[side] - hat[side])[mask]
        return (error**2).sum() / ((at - at.mean(0)) ** 2).sum()

    variance = ((x["r"][mask] - x["r"][mask].mean(0)) ** 2).sum()
    return {
        "fvu": fvu("q"), "fvu_drift": fvu("q") - fvu("r"),
        "perturbation_nsr": ((x["q"] - x["r"])[mask] ** 2).sum() / variance,
        "cross_fvu": ((x["r"] - hat["q"])[mask] ** 2).sum() / variance,
    }  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_sinks_of_either_cell_are_left_out_at_every_layer(planted, paired, batch_size):
    """The oracle takes each position by its token: no norm decides it."""
    corpus, r, q, saes = planted
    measurement, stored = paired(r, q, corpus, saes, batch_size=batch_size)
    found = estimate(measurement, replicates=10)
    sinks = corpus.valid & (corpus.ids == 7)
    gained = corpus.valid & (corpus.ids == 8)
    ordinary = corpus.valid & ~sinks & ~gained
    ids = torch.from_numpy(corpus.ids)
    with torch.no_grad():
        hidden = {
            side: model(input_ids=ids, output_hidden_states=True).hidden_states
            for side, model in (("r", r), ("q", q))
        }
    assert measurement.sinks == stored.sinks is not None
    for layer, sae in saes.items():
        x = {side: hidden[side][layer + 1].double().numpy() for side in SIDES}
        with torch.no_grad():
            f = {side: sae.encode(hidden[side][layer + 1]) for side in SIDES}
            hat = {side: sae.decode(f[side]).double().numpy() for side in SIDES}
        values = found.layers[layer]
        assert values["sink_share"].value == sinks.sum() / corpus.valid.sum()
        assert values["sinks_gained"].value == pytest.approx(1000 / corpus.valid.sum(), rel=1e-12)
        assert values["sinks_lost"].value == 0

        expected = directly(x, hat, ordinary)
        expected |= {f"{key}_all": value for key, value in directly(x, hat, corpus.valid).items()}
        got = {key: values[key].value for key in expected}
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert got["perturbation_nsr_all"] > 2 * got["perturbation_nsr"]
        active = {side: f[side].numpy()[ordinary] for side in SIDES}
        assert values["l0"].value == pytest.approx((active["q"] > 0).sum(1).mean())
        table = feature_metrics.feature_table(measurement.features[layer])
        weight = (active["r"].astype(float) ** 2).mean(0) * (sae.W_dec.double().numpy() ** 2).sum(1)
        assert table.weight == pytest.approx(weight, rel=1e-5)


def test_a_sink_that_the_cell_lost_is_counted_and_left_out(planted, paired):
    """The other way round: what was gained above is lost here."""
    corpus, r, q, saes = planted
    there, _ = paired(r, q, corpus, saes)
    back, _ = paired(q, r, corpus, saes, key="back")
    for layer in stand_ins.LAYERS:
        one, other = there.layers[layer].scalars, back.layers[layer].scalars
        np.testing.assert_array_equal(one["sinks_gained"], other["sinks_lost"])
        assert other["sinks_lost"].sum() == 1 and not other["sinks_gained"].any()
        np.testing.assert_array_equal(one["positions"], other["positions"])
        np.testing.assert_allclose(one["moved"], other["moved"], rtol=1e-6)


def test_where_every_position_counts_none_is_left_out(planted, paired):
    from dataclasses import replace

    corpus, r, q, saes = planted
    everything = replace(
        corpus, spec=replace(corpus.spec, every_position=True), valid=np.ones_like(corpus.valid)
    )
    measurement, stored = paired(r, q, everything, saes)
    assert stored.sinks is not None and measurement.sinks is None
    for rows in measurement.layers.values():
        assert (rows.scalars["positions"] == corpus.ids.shape[1]).all()


@pytest.mark.parametrize("layer", stand_ins.LAYERS)
def test_fvu_is_one_minus_sae_lens_explained_variance(setting, full, estimates, layer):
    from sae_lens.evals import ExplainedVarianceCalculator

    valid = setting["corpus"].valid
    x, _, hat = (torch.from_numpy(t[valid]).float() for t in full["q"][layer])
    calculator = ExplainedVarianceCalculator()
    for start in range(0, len(x), 37):
        calculator.add_batch(hat[start : start + 37], x[start : start + 37])
    assert estimates.layers[layer]["fvu"].value == pytest.approx(1 - calculator.compute(), rel=1e-5)


@pytest.mark.parametrize("layer", stand_ins.LAYERS)
def test_feature_correlation_against_corrcoef(setting, full, paired, layer):
    measurement, _ = paired(setting["r"], setting["q"], setting["corpus"], setting["saes"])
    valid = setting["corpus"].valid
    f_r, f_q = full["r"][layer][1][valid], full["q"][layer][1][valid]
    sums = measurement.features[layer]
    table = feature_metrics.feature_table(sums)
    eligible = (f_r > 0).sum(0) >= 20
    assert eligible.sum() > 50
    assert (table.eligible == eligible).all()
    expected = np.array(
        [
            np.corrcoef(f_r[:, j], f_q[:, j])[0, 1] if f_q[:, j].any() else 0.0
            for j in np.flatnonzero(eligible)
        ]
    )
    assert np.abs(table.correlation[eligible] - expected).max() < 1e-5
    slopes = [np.polyfit(f_r[:, j], f_q[:, j], 1)[0] for j in np.flatnonzero(eligible)]
    assert np.abs(table.slope[eligible] - slopes).max() < 1e-5
    found = feature_metrics.feature_values(sums)
    assert found["feature_survival"] == pytest.approx((expected >= 0.9).mean())
    assert found["feature_damaged"] == pytest.approx((expected < 0.5).mean())
    assert found["feature_blurred"] == pytest.approx(((expected < 0.9) & (expected >= 0.5)).mean())
    decoder = setting["saes"][layer].W_dec.double().numpy()
    weight = ((f_r**2).mean(0) * (decoder**2).sum(1))[eligible]
    assert found["feature_survival_weighted"] == pytest.approx(weight[expected >= 0.9].sum() / weight.sum())
    assert found["feature_correlation_p10"] == pytest.approx(np.quantile(expected, 0.1), abs=1e-5)
    active_r, active_q = (f_r > 0).any(0), (f_q > 0).any(0)
    assert found["features_newly_dead"] == (active_r & ~active_q).sum()
    assert found["features_newly_alive"] == (~active_r & active_q).sum()
    worst = feature_metrics.worst_features(sums)
    lost = weight * (1 - expected)
    assert [w["index"] for w in worst[:3]] == list(np.flatnonzero(eligible)[np.argsort(-lost)[:3]])


@pytest.mark.parametrize("layer", stand_ins.LAYERS)
def test_active_sets_against_scikit_learn(setting, full, estimates, layer):
    from sklearn.metrics import f1_score, jaccard_score

    valid = setting["corpus"].valid
    active = {side: full[side][layer][1][valid].ravel() > 0 for side in SIDES}
    found = estimates.layers[layer]
    assert found["feature_jaccard"].value == pytest.approx(jaccard_score(active["r"], active["q"]))
    assert found["feature_f1"].value == pytest.approx(f1_score(active["r"], active["q"]))
    assert found["l0_ratio"].value == pytest.approx(active["q"].sum() / active["r"].sum())


EXACTLY = {
    "cross_entropy_delta": 0, "cross_entropy_delta_pct": 0, "perplexity_increase_pct": 0,
    "kl_divergence": 0, "kl_divergence_max": 0, "top1_agreement": 1, "flips_to_wrong": 0,
    "flips_to_right": 0, "delta_p_mean": 0, "delta_p_rms": 0, "nonfinite_share": 0,
}  # fmt: skip
EXACTLY_LAYER = {
    "fvu_drift": 0, "perturbation_nsr": 0, "perturbation_rel_l2": 0, "perturbation_token_l2": 0,
    "mean_shift": 0, "residual_cosine": 1, "resolution_ratio": 0, "decoded_drift": 0, "l0_ratio": 1,
    "feature_survival": 1, "feature_survival_weighted": 1, "feature_blurred": 0, "feature_damaged": 0,
    "feature_jaccard": 1, "feature_f1": 1, "features_newly_dead": 0, "features_newly_alive": 0,
}  # fmt: skip


@pytest.mark.parametrize("again", [False, True], ids=["from the store", "forward again"])
def test_reference_against_itself_differs_by_exactly_nothing(setting, paired, again):
    subject = copy.deepcopy(setting["r"]) if again else None
    measurement, _ = paired(setting["r"], subject, setting["corpus"], setting["saes"])
    found = estimate(measurement, replicates=20)
    for key, value in EXACTLY.items():
        e = found.cell[key]
        assert (e.value, e.low, e.high) == (value, value, value), key
    for layer in stand_ins.LAYERS:
        for key, value in EXACTLY_LAYER.items():
            e = found.layers[layer][key]
            ends = (None, None) if key.startswith("features_newly") else (value, value)
            assert (e.value, e.low, e.high) == (value, *ends), (layer, key)


def test_a_loaded_head_is_not_read_again_and_another_is_not_taken_for_it(setting, paired, monkeypatch):
    corpus, saes = setting["corpus"], setting["saes"]
    from_file, stored = paired(setting["r"], None, corpus, saes)
    other = copy.deepcopy(setting["r"])
    with torch.no_grad():
        other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight * 2)
    not_taken, _ = paired(setting["r"], None, corpus, saes, loaded_head=Head.of(other))
    monkeypatch.setattr(type(stored), "head", lambda self: pytest.fail("read again"))
    at_hand, _ = paired(setting["r"], None, corpus, saes, loaded_head=Head.of(copy.deepcopy(setting["r"])))
    for found in (not_taken, at_hand):
        for key, column in from_file.rows.scalars.items():
            np.testing.assert_array_equal(found.rows.scalars[key], column, err_msg=key)


def test_nothing_in_the_loop_waits_for_the_device(setting, paired):
    """Reading one number back (`.item()`, `bool()`, `nonzero`) stalls a GPU.

    One a batch is transformers' own, a look at the mask; this package adds none.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
            return function(*args, **(kwargs or {}))

    counts = []
    for sequences in (4, 16):
        corpus = stand_ins.corpus(sequences)
        paired(setting["r"], None, corpus, setting["saes"], key=f"k{sequences}")  # fills the store
        with Waits() as waits:
            paired(setting["r"], setting["q"], corpus, setting["saes"], key=f"k{sequences}")
        counts.append(waits.count)
    more_batches = (16 - 4) // 4
    assert counts[1] - counts[0] <= more_batches
