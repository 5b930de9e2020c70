"""What does the cell cost: loading, prefill, decode, the SAE, and the whole evaluation?

Speeds are gated as ratios to the reference's of the same run, where thresholds.toml bounds them.
"""

from __future__ import annotations

import pytest

from qsae_bench import speed
from qsae_bench.device_state import watch
from qsae_bench.loading import warm_up
from qsae_bench.results import value_record
from qsae_bench.speeds import RATES

pytestmark = pytest.mark.benchmark(timer=speed.now)

ROUNDS = 5
"""five a side give a ratio a 95% interval: see qsae_bench.timing"""
WARM_UPS = {"cpu": 1, "cuda": 3}
"""rounds that are not counted: a GPU raises its clocks and picks its kernels first"""


def finite(estimates):
    """Values by metric, null where not finite: a bare NaN would not be JSON."""
    return {key: value_record(estimate).value for key, estimate in estimates.items()}


def run(session, cell, timed, name, work):
    """Time rounds of one work, watching the device; nothing is kept where timing is off."""
    with watch(session.device) as seen:
        timed.pedantic(work.run, setup=work.setup, rounds=ROUNDS, warmup_rounds=WARM_UPS[session.device])
    if timed.stats is not None:
        session.speeds.record_rounds(cell, name, timed.stats.stats.data, work.tokens, seen.flags)
        timed.extra_info[RATES[name]] = session.costs(cell)[RATES[name]]
        timed.extra_info["flags"] = seen.flags


def first_batch(session, cell):
    import torch  # here: collection must not wait for it

    corpus = session.model(cell).corpus
    ids = torch.from_numpy(corpus.ids[: corpus.spec.batch_size])
    return ids.to(session.load(cell).device)


@pytest.mark.loads_cell
def test_load(session, cell, timed):
    session.shared(cell)
    session.release()
    warm_up(cell)
    loaded = timed.pedantic(session.load, args=(cell,), rounds=1)
    timed.extra_info.update(session.costs(cell))
    assert loaded.load_seconds > 0


@pytest.mark.measures_cell
def test_evaluation(session, cell, timed):
    session.prepare(cell)
    measured = timed.pedantic(session.measure, args=(cell,), rounds=1)
    timed.extra_info.update(finite(measured.estimates.cell))
    for layer, estimates in measured.estimates.layers.items():
        timed.extra_info[f"layer{layer}"] = finite(estimates)
    assert measured.tokens > 0
    measured.check_valid()


def test_prefill(session, cell, timed, speed_gate):
    work = speed.prefill(session.load(cell).model, first_batch(session, cell))
    run(session, cell, timed, "prefill", work)
    speed_gate("prefill_speed_ratio")
    assert session.costs(cell).get("prefill_tokens_per_second", 1) > 0


def test_decode(session, cell, timed, speed_gate):
    work = speed.decode(session.load(cell).model, first_batch(session, cell))
    run(session, cell, timed, "decode", work)
    speed_gate("decode_speed_ratio")
    assert session.costs(cell).get("decode_tokens_per_second", 1) > 0


def test_sae(session, cell, timed):
    if not cell.is_reference:
        pytest.skip("the SAE is the same for every quantization: timed once, with the reference")
    import torch

    sae = session.model(cell).saes[cell.model.layers[0]]
    shape = (*first_batch(session, cell).shape, cell.model.d_model)
    work = speed.sae_round_trip(sae, torch.randn(shape, device=sae.W_enc.device))
    run(session, cell, timed, "sae", work)
    assert session.costs(cell).get("sae_tokens_per_second", 1) > 0
