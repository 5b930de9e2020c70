"""``--protocol study`` against an independent restatement of the study's formulas, on the same model,
SAE and text: nothing below uses the package's metrics, its passes or its packing."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

import qsae_bench.tiny
import warm
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions
from qsae_bench.tiny.grammar import documents

DATA = Path(qsae_bench.tiny.__file__).parent / "data"
LAYER, LENGTH, CHUNKS, BATCH = 3, 64, 20, 4
TOKENS = CHUNKS * (LENGTH - 1)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """estimates of reference and rtn_int4, as the suite measures them under the protocol."""
    registry = load_registry()
    selection = Selection(
        models=("tiny_gemma3",), quantizations=("reference", "rtn_int4"), layers=str(LAYER), protocol="study",
        tokens=TOKENS, sequence_length=LENGTH, batch_size=BATCH,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("study")
    session = LocalSession(SessionOptions(registry, Thresholds({}), folder, "test", selection=selection))
    reference, quantized = registry.select(selection)
    found = session.measure(reference), session.measure(quantized)
    corpus = session.model(quantized).corpus
    model = session.load(quantized).model
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    session.close()
    return *found, corpus, weights


@pytest.fixture(scope="module")
def theirs(ours):
    """The study's numbers, from its description: documents with a BOS each, one after the other, cut into
    chunks; cross-entropy over all next tokens; one scalar mean, BOS included; everything in float64."""
    *_, weights = ours
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    stream = itertools.chain.from_iterable(
        [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for text in documents(0, "heldout")
    )
    ids = torch.tensor(list(itertools.islice(stream, CHUNKS * LENGTH))).view(CHUNKS, LENGTH)
    sae = SAE.load_from_disk(DATA / "saes" / f"layer{LAYER}", device="cpu", dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(DATA / "model", dtype=torch.float32).eval()
    quantized = AutoModelForCausalLM.from_pretrained(DATA / "model", dtype=torch.float32).eval()
    quantized.load_state_dict(weights)
    sides = [_side(model, sae, ids) for model in (reference, quantized)]
    return ids.numpy(), sides


def _side(model, sae, ids):
    nll, hidden, errors, active = [], [], [], []
    with torch.no_grad():
        for batch in ids.split(BATCH):
            out = model(batch, output_hidden_states=True)
            x = out.hidden_states[LAYER + 1]
            log_p = out.logits[:, :-1].double().log_softmax(-1)
            nll.append(-log_p.gather(-1, batch[:, 1:, None]).numpy())
            features = sae.encode(x)
            hidden.append(x.double().numpy())
            errors.append((x.double() - sae.decode(features).double()).numpy())
            active.append((features > 0).sum(-1).numpy())
    x, error = np.concatenate(hidden), np.concatenate(errors)
    return {
        "x": x,
        "cross_entropy": np.concatenate(nll).mean(),
        "fvu_scalar_bos": np.square(error).sum() / np.square(x - x.mean()).sum(),
        "mse": np.square(error).mean(),
        "l0": np.concatenate(active).mean(),
    }


def test_the_packing_is_the_studys(ours, theirs):
    corpus, (ids, _) = ours[2], theirs
    assert (corpus.ids == ids).all()
    assert corpus.valid.all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("key", ["fvu_scalar_bos", "mse", "l0"])
def test_sae_numbers_are_the_studys(ours, theirs, side, key):
    got = ours[side].estimates.layers[LAYER][key].value
    assert got == pytest.approx(theirs[1][side][key], rel=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_cross_entropy_is_the_studys(ours, theirs, side):
    want = theirs[1][side]["cross_entropy"]
    assert ours[side].estimates.cell["cross_entropy"].value == pytest.approx(want, rel=1e-6)
    assert ours[side].estimates.cell["perplexity"].value == pytest.approx(math.exp(want), rel=1e-5)


def test_the_change_in_percent_of_cross_entropy_is_the_studys(ours, theirs):
    reference, quantized = (side["cross_entropy"] for side in theirs[1])
    want = 100 * (quantized - reference) / reference
    assert ours[1].estimates.cell["cross_entropy_delta_pct"].value == pytest.approx(want, abs=1e-4)


def test_perturbation_and_its_ratio_are_the_studys(ours, theirs):
    reference, quantized = theirs[1]
    moved = quantized["x"] - reference["x"]
    got = ours[1].estimates.layers[LAYER]
    relative = math.sqrt(np.square(moved).sum() / np.square(reference["x"]).sum())
    assert got["perturbation_rel_l2"].value == pytest.approx(relative, rel=1e-6)
    token = np.sqrt(np.square(moved).sum(-1)).mean()
    assert got["perturbation_token_l2"].value == pytest.approx(token, rel=1e-6)
    ratio = np.square(moved).mean() / reference["mse"]
    assert got["resolution_ratio"].value == pytest.approx(ratio, rel=1e-6)


def test_the_summary_prints_the_studys_tables_beside_what_was_published(tmp_path):
    extra = tmp_path / "published.toml"
    built_in = Path(qsae_bench.__file__).parent / "registry" / "tiny.toml"
    table = "\n[models.tiny_gemma3.published]\nnf4 = { cross_entropy_delta_pct = 2.7 }\n"
    extra.write_text(built_in.read_text(encoding="utf-8") + table, encoding="utf-8")
    run = warm.run(
        ["-q", "-k", "tiny_gemma3 and perplexity", "--protocol",
         "study", "--tokens", "6000", "--registry", str(extra), "--qsae-dir", str(tmp_path / "qsae"),
         "--quantizations", "reference,nf4"],
        dict(os.environ), timeout=300,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("study: cross-entropy"))
    assert "published ΔCE %" in lines[row + 1]
    assert "+2.7" in next(line for line in lines[row:] if line.startswith("nf4"))
    for title in ("SAE quality", "how far quantization moved", "FVU on the first so many tokens"):
        assert any(line.startswith("study: ") and title in line for line in lines), title
    assert any(line.startswith("nf4: reading of a flat FVU: ") for line in lines)
