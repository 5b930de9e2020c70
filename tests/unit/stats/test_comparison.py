"""A against B: against brute force over activations, statsmodels, exact enumeration and simulated truth."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from builders import Side, Synthetic, features_of_two, measurement, one_line, synthetic
from qsae_bench.errors import QsaeError
from qsae_bench.metrics import METRICS, headline
from qsae_bench.metrics.measurement import Measurement, Rows, first_sequences
from qsae_bench.stats.bootstrap import Estimate, bootstrap_weights
from qsae_bench.stats.comparison import (
    Difference,
    check_comparable,
    differences,
    holm,
    metrics_to_test,
    on_common_sequences,
    with_verdicts,
)
from qsae_bench.stats.permutation import SWAPS, Contrast, Resampling, feature_tests

LAYER = 3
SUMMED = (
    "kl_divergence",
    "perplexity_increase_pct",
    "fvu_drift",
    "perturbation_nsr",
    "mean_shift",
    "fvu_all",
)


def other_cell(data: Synthetic, seed: int, noise: float = 0.2) -> Synthetic:
    """Another quantization beside the same reference."""
    rng = np.random.default_rng(seed)

    def near(x):
        return x + noise * rng.normal(size=x.shape)

    x = near(data.r.x)
    return dataclasses.replace(
        data,
        q=Side(x, near(0.8 * x), np.abs(x)),
        nll_q=near(data.nll_r) + 0.05,
        kl=rng.gamma(0.5, noise / 10, size=data.kl.shape),
        right_q=rng.random(data.kl.shape) < 0.4,
    )


def two_cells(seed=0, n=12, noise=(0.2, 0.25)):
    data = synthetic(seed, n=n)
    return tuple(other_cell(data, 1000 * seed + 7 + side, size) for side, size in enumerate(noise))


def rows_of(*cells: Synthetic) -> list[Measurement]:
    return [measurement(cell, (LAYER,), quantization=name) for cell, name in zip(cells, "ab", strict=True)]


def direct(q: Synthetic, pick) -> dict[str, float]:
    """The metrics from activations, of the sequences ``pick`` (repeats count)."""
    valid, every = q.ordinary[pick], q.valid[pick]
    x_r, x_q, hat_r, hat_q = (a[pick] for a in (q.r.x, q.q.x, q.r.x_hat, q.q.x_hat))

    def fvu(x, hat, mask):
        return ((x[mask] - hat[mask]) ** 2).sum() / ((x[mask] - x[mask].mean(axis=0)) ** 2).sum()

    variance = ((x_r[valid] - x_r[valid].mean(axis=0)) ** 2).sum() / valid.sum()
    moved, scored = (x_q - x_r)[valid], q.scored[pick]
    return {
        "kl_divergence": q.kl[pick][scored].mean(),
        "perplexity_increase_pct": 100 * math.expm1((q.nll_q[pick] - q.nll_r[pick])[scored].mean()),
        "fvu_drift": fvu(x_q, hat_q, valid) - fvu(x_r, hat_r, valid),
        "perturbation_nsr": (moved**2).sum() / len(moved) / variance,
        "mean_shift": (moved.mean(axis=0) ** 2).sum() / variance,
        "fvu_all": fvu(x_q, hat_q, every),
    }


def exchanged(a: Synthetic, b: Synthetic, swap) -> Synthetic:
    """A with B's sequences where ``swap``."""

    def mixed(one, other):
        return np.where(np.reshape(swap, (-1,) + (1,) * (one.ndim - 1)), other, one)

    q = Side(mixed(a.q.x, b.q.x), mixed(a.q.x_hat, b.q.x_hat), mixed(a.q.features, b.q.features))
    return dataclasses.replace(a, q=q, nll_q=mixed(a.nll_q, b.nll_q), kl=mixed(a.kl, b.kl))


def by_key(found: list[Difference]) -> dict[str, Contrast]:
    return {d.metric: d.tested for d in found}


# -- against brute force --------------------------------------------------------------------------


def with_errors(a: Synthetic, b: Synthetic, pick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A − B of the sequences ``pick``, and its standard error by leaving out one after the other."""

    def difference(some: np.ndarray) -> np.ndarray:
        of_a, of_b = direct(a, some), direct(b, some)
        return np.array([of_a[key] - of_b[key] for key in SUMMED])

    left_out = [difference(np.delete(pick, k)) for k in range(len(pick))]
    return difference(pick), np.std(left_out, axis=0) * (len(pick) - 1) ** 0.5


def test_differences_and_intervals_are_those_of_the_activations():
    a, b = two_cells(n=20)
    replicates = 60
    how = Resampling(swaps=9, replicates=replicates)
    found = by_key(differences(*rows_of(a, b), metrics_to_test(SUMMED), how))
    everything = np.arange(20)
    value_a, value_b = direct(a, everything), direct(b, everything)
    value, error = with_errors(a, b, everything)
    scaled = []
    for chunk in bootstrap_weights(20, replicates, seed=0):
        for weights in chunk:
            again, own = with_errors(a, b, np.repeat(everything, weights.astype(int)))
            scaled.append((again - value) / own)
    far = np.quantile(scaled, [0.975, 0.025], axis=0)
    assert found.keys() == set(SUMMED)
    for key, low, high in zip(SUMMED, *(value - far * error), strict=True):
        one = found[key]
        assert (one.a, one.b) == pytest.approx((value_a[key], value_b[key]), rel=1e-9)
        assert one.difference.value == pytest.approx(value_a[key] - value_b[key], rel=1e-8)
        # a jackknife's standard errors are not quite those of linearisation, and not at all for a squared
        # norm that is mostly noise
        if key != "mean_shift":
            near = 0.08 * (high - low)
            assert (one.difference.low, one.difference.high) == pytest.approx((low, high), abs=near)
        assert one.method == "label swap"


def test_p_is_that_of_every_exchange():
    """Eight sequences: all 256 exchanges, from the activations; ours draws among them."""
    a, b = two_cells(seed=3, n=8, noise=(0.2, 0.23))
    found = by_key(
        differences(*rows_of(a, b), metrics_to_test(SUMMED), Resampling(swaps=SWAPS, replicates=2))
    )
    everything = np.arange(8)
    changes = []
    for swap in itertools.product([False, True], repeat=8):
        one, other = direct(exchanged(a, b, swap), everything), direct(exchanged(b, a, swap), everything)
        changes.append([one[key] - other[key] for key in SUMMED])
    exact = (np.abs(changes) >= np.abs(changes[0]) * (1 - 1e-9)).mean(axis=0)
    assert len(set(exact)) > 3, "else the comparison says nothing"
    for key, p in zip(SUMMED, exact, strict=True):
        assert found[key].p == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / SWAPS) + 2 / SWAPS), key


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_is_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert holm(p_values) == pytest.approx(list(expected), rel=1e-12, abs=1e-300)


def test_all_tests_of_all_pairs_are_one_family():
    def difference(p, metric="kl_divergence", value=-1.0):
        return Difference(metric, None, Contrast(1.0, 2.0, Estimate(value), p, "label swap"))

    pairs = with_verdicts([[difference(0.01), difference(None)], [difference(0.04), difference(0.02)]])
    assert [[d.adjusted_p for d in pair] for pair in pairs] == [[0.03, None], [0.04, 0.04]]
    assert [d.verdict for pair in pairs for d in pair] == ["better", "not tested", "better", "better"]
    said = {
        ("kl_divergence", 1.0): "worse", ("top1_agreement", 1.0): "better", ("top1_agreement", -1.0): "worse",
        ("l0", 1.0): "differs", ("l0", -1.0): "differs",
    }  # fmt: skip
    for (metric, value), word in said.items():
        assert with_verdicts([[difference(0.05, metric, value)]])[0][0].verdict == word
        assert with_verdicts([[difference(0.051, metric, value)]])[0][0].verdict == "no difference shown"


# -- features -------------------------------------------------------------------------------------


def test_no_eligible_feature_is_not_tested():
    a, b = features_of_two(np.random.default_rng(5), n=8, length=1)
    one = feature_tests(a, b, ["feature_survival"], 0.95)["feature_survival"]
    assert math.isnan(one.difference.value) and one.p is None
    assert with_verdicts([[Difference("feature_survival", 1, one)]])[0][0].verdict == "not tested"


# -- what may not matter --------------------------------------------------------------------------

FEW = Resampling(swaps=199, replicates=100)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 20))
def test_exchanging_a_and_b_turns_the_sign_and_nothing_else(seed, n):
    one, other = rows_of(*two_cells(seed, n))
    forth = differences(one, other, metrics_to_test(SUMMED), FEW)
    back = by_key(differences(other, one, metrics_to_test(SUMMED), FEW))
    for d in forth:
        mirrored = back[d.metric]
        assert (mirrored.a, mirrored.b, mirrored.p) == (d.tested.b, d.tested.a, d.tested.p)
        e, m = d.tested.difference, mirrored.difference
        assert m.value == pytest.approx(-e.value, rel=1e-9, abs=1e-12)
        # another order of summation: a standard error is the root of a difference of squares
        rounding = 1e-6 * e.half_width + 1e-12
        assert (m.low, m.high) == pytest.approx((-e.high, -e.low), abs=rounding)
    said = [d.verdict for d in with_verdicts([forth])[0]]
    mirror = {"better": "worse", "worse": "better"}
    assert [
        d.verdict for d in with_verdicts([differences(other, one, metrics_to_test(SUMMED), FEW)])[0]
    ] == [mirror.get(word, word) for word in said]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(10)))
def test_order_of_sequences_changes_no_difference(seed, order):
    cells = rows_of(*two_cells(seed, n=10))

    def reordered(one):
        layers = {layer: rows.take(np.array(order)) for layer, rows in one.layers.items()}
        return dataclasses.replace(one, rows=one.rows.take(np.array(order)), layers=layers)

    before = by_key(differences(*cells, metrics_to_test(SUMMED), FEW))
    after = by_key(differences(*map(reordered, cells), metrics_to_test(SUMMED), FEW))
    for key, one in before.items():
        assert after[key].difference.value == pytest.approx(one.difference.value, rel=1e-9, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_two_cells_that_do_the_same_tie(seed):
    a, _ = two_cells(seed)
    every = [key for key, metric in METRICS.items() if metric.formula is not None]
    for d in with_verdicts([differences(*rows_of(a, a), metrics_to_test(every), FEW)])[0]:
        assert (d.tested.difference, d.tested.p) == (Estimate(0.0, 0.0, 0.0), 1.0), d.metric
        assert d.verdict == "no difference shown"


def test_rounding_alone_is_no_difference():
    """Another order of summation, as another kernel has it."""
    a, _ = rows_of(*two_cells(n=40))
    scalars = a.layers[LAYER].scalars
    noisy = {**scalars, "error_q": scalars["error_q"] * (1 + 1e-14)}
    b = dataclasses.replace(a, layers={LAYER: Rows(noisy, a.layers[LAYER].vectors)})
    found = differences(a, b, metrics_to_test(("fvu_drift",)), FEW)
    assert found[0].tested.difference.value != 0
    assert found[0].tested.p == 1


# -- simulated truth ------------------------------------------------------------------------------

SIMULATIONS = 1000
QUICK = Resampling(swaps=499, replicates=2)


def simulated(rng, worse: float = 0.0, n: int = 48, d: int = 3, with_features: bool = True):
    """Rows of A and B, each sequence with a heavy-tailed level that both share and a part of its own.

    Alike in law; ``worse`` adds to B in units of about one standard error of the difference.
    """
    tokens = rng.integers(90, 128, size=n).astype(float)
    level = rng.lognormal(0.0, 1.0, size=n)
    nll_r = tokens * rng.gamma(16.0, 1 / 8, size=n)
    sum_r, zeros = tokens[:, None] * rng.normal(1.0, 0.3, size=(n, d)), np.zeros((n, d))
    energy_r = tokens * rng.gamma(8.0, 3.0, size=n) + 10 * tokens
    error_r = 0.1 * energy_r * rng.uniform(0.8, 1.2, size=n)
    sums = features_of_two(rng) if with_features else (None, None)
    cells = []
    for name, shift in (("a", 0.0), ("b", worse)):
        own = level * rng.lognormal(0.0, 1.0, size=n)  # own tails of the variance e³
        step = shift * math.sqrt(2 / n)
        kl = tokens * 1e-3 * (own + 5.9 * step)
        cell = {
            "tokens": tokens, "nonfinite": np.zeros(n), "nll_r": nll_r, "kl": kl,
            "nll_q": nll_r + tokens * (1e-3 * rng.standard_t(3, size=n) * level + 4.7e-3 * step),
            "top1_same": tokens * (0.95 - 0.017 * step) - rng.poisson(2 * level, size=n),
        }  # fmt: skip
        layer = {
            "positions": tokens, "positions_all": tokens, "sinks": np.zeros(n), "energy_r": energy_r,
            "error_r": error_r, "energy_all_r": energy_r, "error_all_r": error_r,
            "energy_q": energy_r * (1 + 0.001 * rng.normal(size=n)),
            "error_q": error_r + tokens * 0.01 * (own + 5.9 * step),
            "moved": tokens * 0.02 * (level * rng.lognormal(0.0, 1.0, size=n) + 5.9 * step),
        }  # fmt: skip
        vectors = {
            "sum_r": sum_r,
            "sum_q": sum_r + 0.1 * rng.normal(size=(n, d)),
            "sum_sinks_r": zeros,
            "sum_sinks_q": zeros,
        }
        found = sums[len(cells)]
        cells.append(
            Measurement(
                "m",
                name,
                "f",
                d,
                Rows(cell),
                {LAYER: Rows(layer, vectors)},
                {LAYER: found} if found else {},
            )
        )
    return cells


@pytest.mark.slow
def test_with_no_difference_a_verdict_is_rare():
    """1000 tables of six tests each: any better or worse in at most 5% of them.

    Exchangeable sides make the true rate at most 5% (less: the tests of one table depend on each other
    and Holm does not know).
    """
    rng = np.random.default_rng(20)
    called = 0
    for _ in range(SIMULATIONS):
        found = differences(*simulated(rng), metrics_to_test(headline("comparison")), QUICK)
        assert len(found) == len(headline("comparison"))
        called += any(d.verdict != "no difference shown" for d in with_verdicts([found])[0])
    assert called <= 0.05 * SIMULATIONS
    assert called >= 0.005 * SIMULATIONS, "else nothing is ever called"


def test_a_true_difference_is_never_called_for_the_wrong_side():
    """B is worse by two standard errors or more, on every metric of rows."""
    rng = np.random.default_rng(21)
    wanted = metrics_to_test(headline("comparison")[:-1])
    said = {"better": 0, "worse": 0, "no difference shown": 0}
    sizes: dict[str, list[float]] = {metric.key: [] for metric in wanted}
    for index in range(SIMULATIONS):
        found = with_verdicts(
            [
                differences(
                    *simulated(rng, 2.0 + 3 * index / SIMULATIONS, with_features=False), wanted, QUICK
                )
            ]
        )[0]
        for d in found:
            said[d.verdict] += 1
            sizes[d.metric].append(d.tested.difference.value)
    for key, values in sizes.items():
        weakest = np.array(values[: SIMULATIONS // 4])
        assert 1.5 < abs(weakest.mean()) / weakest.std() < 6, key
    assert said["worse"] == 0
    assert said["better"] > said["no difference shown"] / 2


# -- what can't be compared -----------------------------------------------------------------------


def changed(one: Measurement, column: str, factor: float, layer: int | None = None) -> Measurement:
    rows = one.rows if layer is None else one.layers[layer]
    scalars = dict(rows.scalars)
    scalars[column] = scalars[column] * np.where(np.arange(len(rows)) == 2, factor, 1)
    new = Rows(scalars, rows.vectors)
    if layer is None:
        return dataclasses.replace(one, rows=new)
    return dataclasses.replace(one, layers={**one.layers, layer: new})


REFUSED = {
    "another model": (lambda b: dataclasses.replace(b, model="large"), "another model: tiny and large"),
    "another fingerprint": (
        lambda b: dataclasses.replace(b, corpus_fingerprint="e" * 32),
        f"another corpus: 12 sequences of fingerprint {'f' * 32} and 12 of {'e' * 32}",
    ),
    "another reference": (lambda b: changed(b, "nll_r", 1 + 1e-5), "another reference: nll_r differs by up to 1e-05"),
    "another reference's layer": (
        lambda b: changed(b, "energy_all_r", 1.5, LAYER), "another reference: energy_all_r of layer 3 differs by up to 0.33",
    ),
    "another mask": (lambda b: changed(b, "positions_all", 1.1, LAYER), "positions_all of layer 3"),
    "another SAE": (lambda b: changed(b, "error_all_r", 1.1, LAYER), "another SAE at layer 3"),
    "not finite": (lambda b: changed(b, "kl", math.nan), "tiny-b: non-finite values"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    change, message = REFUSED[name]
    a, b = rows_of(*two_cells())
    check_comparable(a, b, metrics_to_test(headline("comparison")))
    for sides in ((a, change(b)), (change(b), a)):
        with pytest.raises(QsaeError) as caught:
            check_comparable(*sides, metrics_to_test(headline("comparison")))
        said = one_line(caught.value)
        assert message in said or sides[0] is not a


def test_a_cell_that_ran_on_is_cut_to_what_both_saw():
    a, b = rows_of(*two_cells())
    shorter = first_sequences(b, 9)
    assert on_common_sequences(a, b) == (a, b)
    for sides in (on_common_sequences(a, shorter), on_common_sequences(shorter, a)):
        assert [len(one.rows) for one in sides] == [9, 9]
        assert [len(rows) for one in sides for rows in one.layers.values()] == [9] * 2 * len(a.layers)
    cut, _ = on_common_sequences(a, shorter)
    assert np.array_equal(cut.rows.scalars["nll_q"], a.rows.scalars["nll_q"][:9])


def test_what_is_not_looked_at_is_not_refused():
    """Rounding of the reference, and layers when only the cell's metrics are asked for."""
    a, b = rows_of(*two_cells())
    check_comparable(a, changed(b, "nll_r", 1 + 1e-7), metrics_to_test(headline("comparison")))
    check_comparable(a, changed(b, "error_all_r", 1.1, LAYER), metrics_to_test(["kl_divergence"]))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("kl_divergance", "unknown metric 'kl_divergance' (did you mean 'kl_divergence'?)"),
        ("load_seconds", "load_seconds is shown beside, not tested"),
        ("kl_divergence_p99", "kl_divergence_p99 has no paired test"),
        ("features_newly_dead", "features_newly_dead has no paired test"),
    ],
)
def test_metrics_that_can_not_be_tested(name, part):
    with pytest.raises(QsaeError) as caught:
        metrics_to_test([name])
    assert part in one_line(caught.value)


def test_layers_and_columns_that_only_one_has_are_left_out():
    a, b = rows_of(*two_cells())
    b = dataclasses.replace(b, layers={5: b.layers[LAYER]})
    assert [d.metric for d in differences(a, b, metrics_to_test(headline("comparison")), FEW)] == list(
        headline("comparison")[:3]
    )
    assert differences(a, b, metrics_to_test(["fvu_drift"]), FEW) == []
    a, b = rows_of(*two_cells())
    scalars = {k: v for k, v in b.layers[LAYER].scalars.items() if k != "spliced_q"}
    b = dataclasses.replace(b, layers={LAYER: Rows(scalars, b.layers[LAYER].vectors)})
    wanted = metrics_to_test(["splice_loss", "fvu_drift"])
    assert [d.metric for d in differences(a, b, wanted, FEW)] == ["fvu_drift"]
