"""sae-lens's own evaluation of the embedded model's SAEs, on the tokens that the suite measures."""

from __future__ import annotations

import pytest
import torch

from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.tiny import MODEL_DIR, SAE_DIR

evals = pytest.importorskip("sae_lens.evals")

LAYER = 3
BATCH = 8


class Tokens:
    """What run_evals asks of an activation store: batches of the corpus, from the first again when reset."""

    def __init__(self, ids):
        self.ids, self.place = torch.from_numpy(ids), 0
        self.context_size, self.store_batch_size_prompts = ids.shape[1], BATCH

    def reset_input_dataset(self):
        self.place = 0

    def get_batch_tokens(self, count):
        self.place += count
        return self.ids[self.place - count : self.place]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(estimates of cell and layer, sae-lens's metrics, its losses a token, the corpus)."""
    from sae_lens import SAE
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activation_scaler import ActivationScaler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qsae_bench.run.local_session import LocalSession
    from qsae_bench.run.session import SessionOptions

    registry = load_registry()
    chosen = Selection(
        models=("tiny_gemma3",), quantizations=("reference",), layers=str(LAYER), tokens=4064
    )
    (cell,) = registry.select(chosen)
    folder = tmp_path_factory.mktemp("evals")
    session = LocalSession(
        SessionOptions(registry, Thresholds({}), folder, "test", selection=chosen, splice=True)
    )
    estimates = session.measure(cell).estimates
    corpus = session.model(cell).corpus
    session.close()

    sae = SAE.load_from_disk(SAE_DIR / f"layer{LAYER}")
    sae.cfg.metadata.hook_name = hook = f"model.layers.{LAYER}"
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    proxy = HookedProxyLM(model, AutoTokenizer.from_pretrained(MODEL_DIR), [hook])
    batches = len(corpus.ids) // BATCH
    config = evals.get_eval_everything_config(BATCH, batches, batches)
    tokens = Tokens(corpus.ids)
    found, _ = evals.run_evals(sae, tokens, proxy, ActivationScaler(), config)
    with torch.no_grad():
        losses = evals.get_recons_loss(
            sae,
            proxy,
            ActivationScaler(),
            tokens.ids,
            False,
            True,
            ignore_tokens=[proxy.tokenizer.bos_token_id],
        )
    flat = {key: value for group in found.values() for key, value in group.items()}
    return (estimates.cell, estimates.layers[LAYER]), flat, losses, corpus


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("fvu", lambda m: 1 - m["explained_variance"]),
        ("l0", lambda m: m["l0"]),
        ("reconstruction_cosine", lambda m: m["cossim"]),
        ("mse", lambda m: m["mse"] / 192),  # a sum over dimensions there
    ],
)
def test_reconstruction(both, ours, theirs):
    (_, layer), metrics, _, _ = both
    assert layer[ours].value == pytest.approx(theirs(metrics), rel=2e-6)


def test_loss_with_and_without_the_sae(both):
    """sae-lens leaves out what BOS predicts and keeps what predicts BOS; the suite scores valid targets.

    Under either mask its losses a token are the same, to the rounding of its mean in float32.
    """
    (cell, layer), metrics, losses, corpus = both
    without, spliced = losses["ce_loss_without_sae"].double(), losses["ce_loss_with_sae"].double()
    inputs = torch.from_numpy(corpus.valid[:, :-1])
    assert metrics["ce_loss_without_sae"] == pytest.approx(without[inputs].mean().item(), rel=1e-6)
    assert metrics["ce_loss_with_sae"] == pytest.approx(spliced[inputs].mean().item(), rel=1e-6)
    targets = torch.from_numpy(corpus.valid[:, 1:])
    assert cell["cross_entropy"].value == pytest.approx(without[targets].mean().item(), rel=1e-6)
    expected = (spliced - without)[targets].mean().item()
    assert layer["splice_loss"].value == pytest.approx(expected, rel=1e-4)
