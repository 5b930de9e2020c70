"""What does the cell cost: loading, prefill, decode, the SAE, and the whole evaluation?"""

from __future__ import annotations

import pytest

from qsae_bench import speed
from qsae_bench.loading import warm_up
from qsae_bench.results import value_record

ROUNDS = 5


def record(session, cell, timed, key, tokens):
    """Store tokens a second from the median round; nothing where timing is off."""
    if timed.stats is not None:
        rate = tokens / timed.stats.stats.median
        timed.extra_info[key] = rate
        session.record(cell, key, rate)


def finite(estimates):
    """Values by metric, null where not finite: a bare NaN would not be JSON."""
    return {key: value_record(estimate).value for key, estimate in estimates.items()}


def run(session, cell, timed, key, work):
    timed.pedantic(work.run, setup=work.setup, rounds=ROUNDS, warmup_rounds=0 if work.setup else 1)
    record(session, cell, timed, key, work.tokens)


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
    assert not measured.broken, measured.broken


def test_prefill(session, cell, timed):
    work = speed.prefill(session.load(cell).model, first_batch(session, cell))
    run(session, cell, timed, "prefill_tokens_per_second", work)
    assert session.costs(cell).get("prefill_tokens_per_second", 1) > 0


def test_decode(session, cell, timed):
    work = speed.decode(session.load(cell).model, first_batch(session, cell))
    run(session, cell, timed, "decode_tokens_per_second", work)
    assert session.costs(cell).get("decode_tokens_per_second", 1) > 0


def test_sae(session, cell, timed):
    if not cell.is_reference:
        pytest.skip("the SAE is the same for every quantization: timed once, with the reference")
    import torch

    sae = session.model(cell).saes[cell.model.layers[0]]
    shape = (*first_batch(session, cell).shape, cell.model.d_model)
    work = speed.sae_round_trip(sae, torch.randn(shape, device=sae.W_enc.device))
    run(session, cell, timed, "sae_tokens_per_second", work)
    assert session.costs(cell).get("sae_tokens_per_second", 1) > 0
