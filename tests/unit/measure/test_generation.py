"""How a model writes, against transformers' own ``generate`` and a whole forward for each token, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import stand_ins
from qsae_bench.measure import generation
from qsae_bench.models.taps import Subject

CPU = torch.device("cpu")
LENGTH = 24
PROMPT = LENGTH // 2


def one_row_scaled(model, factor):
    """A copy with a matrix in each block that is off by a factor wherever it is given one row alone."""

    def hook(_module, inputs, output):
        return output * factor if inputs[0].shape[:-1].numel() == 1 else output

    other = copy.deepcopy(model)
    for block in other.model.layers:
        block.mlp.gate_proj.register_forward_hook(hook)
    return other


@pytest.fixture(autouse=True)
def three_prompts(monkeypatch):
    monkeypatch.setattr(generation, "PROMPTS", 3)


@pytest.fixture(scope="module")
def models():
    reference = stand_ins.gemma3().double()
    return reference, stand_ins.damaged(reference, 0.02)


@pytest.fixture(scope="module")
def corpus():
    return stand_ins.corpus(length=LENGTH)


def written(model, corpus):
    """What ``generate`` writes after each prompt."""
    prompts = torch.from_numpy(corpus.ids[: generation.PROMPTS, :PROMPT])
    with torch.no_grad():
        out = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=PROMPT,
            min_new_tokens=PROMPT,
        )  # fmt: skip
    return out[:, PROMPT:].tolist()


def kl_of_decoding(model, ids):
    """Each position with the model's own cache, and without any; both from whole logits."""
    found = []
    for row in torch.from_numpy(ids):
        cache = model(input_ids=row[None, : PROMPT - 1]).past_key_values
        for position in range(PROMPT - 1, PROMPT - 1 + generation.DECODE_TOKENS):
            step = model(input_ids=row[None, position : position + 1], past_key_values=cache)
            alone = step.logits[0, -1].log_softmax(-1)
            whole = (
                model(input_ids=row[None, : position + 1], use_cache=False).logits[0, -1].log_softmax(-1)
            )
            found.append(float((whole.exp() * (whole - alone)).sum()))
    return np.mean(found)


def test_continuations_are_those_of_generate(models, corpus):
    for model in models:
        stored = generation.reference_generation(Subject(model, CPU), corpus)
        # no end of text: `generate` is kept from one, and random weights don't prefer it
        assert stored["continuations"] == written(model, corpus)


def test_agreement_is_the_length_that_two_texts_of_generate_share(models, corpus):
    reference, damaged = models
    theirs, own = written(reference, corpus), written(damaged, corpus)
    common = [
        next((n for n in range(PROMPT) if a[n] != b[n]), PROMPT) for a, b in zip(theirs, own, strict=True)
    ]
    assert 0 < np.median(common) < PROMPT
    found = generation.generation_values(Subject(damaged, CPU), corpus, theirs)
    assert found["greedy_agreement_tokens"] == np.median(common)
    itself = generation.generation_values(Subject(reference, CPU), corpus, theirs)
    assert itself["greedy_agreement_tokens"] == PROMPT


def test_decoding_is_what_a_whole_forward_gives(models, corpus):
    for model in models:
        found = generation.generation_values(Subject(model, CPU), corpus, None)
        assert list(found) == ["decode_kl_divergence"]
        assert 0 <= found["decode_kl_divergence"] < 1e-12


@pytest.mark.parametrize("factor", [1.01, -1.0])
def test_a_fault_at_one_row_is_as_large_as_plain_logits_say(models, corpus, factor):
    faulty = one_row_scaled(models[0], factor)
    with torch.no_grad():
        expected = kl_of_decoding(faulty, corpus.ids[: generation.PROMPTS])
    found = generation.decode_kl_divergence(faulty, torch.from_numpy(corpus.ids[: generation.PROMPTS]))
    assert expected > 1e-7
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_stays_so(models, corpus):
    faulty = one_row_scaled(models[0], torch.nan)
    assert np.isnan(
        generation.generation_values(Subject(faulty, CPU), corpus, None)["decode_kl_divergence"]
    )


def test_a_reference_agrees_with_itself(models, corpus):
    stored = generation.reference_generation(Subject(models[0], CPU), corpus)
    assert generation.reference_values(stored) == {
        "decode_kl_divergence": stored["decode_kl_divergence"], "greedy_agreement_tokens": PROMPT,
    }  # fmt: skip
