"""The loss with an SAE's reconstruction in the model, against a plain hook that shares no code with the package."""

from __future__ import annotations

import copy

import pytest
import torch

import stand_ins
from qsae_bench.measure.splice import mean_replacement, sae_replacement, with_splice
from qsae_bench.models.taps import Subject
from qsae_bench.progress import ProgressOutput
from qsae_bench.stats.bootstrap import estimate

SIDES = ("r", "q")


def test_splice_against_a_plain_hook(setting, paired):
    corpus, saes = setting["corpus"], setting["saes"]
    subjects = {side: Subject(setting[side], torch.device("cpu")) for side in SIDES}
    reference, _ = paired(setting["r"], None, corpus, saes)
    reference = with_splice(reference, None, subjects["r"], corpus, saes, "cpu")
    measured, _ = paired(setting["r"], setting["q"], corpus, saes)
    lines = []
    spliced = with_splice(
        measured, reference, subjects["q"], corpus, saes, "cpu", output=ProgressOutput(lines.append, -1.0)
    )
    assert {line.partition(":")[0] for line in lines} == {
        f"{measured.model}-{measured.quantization} splice, layer {layer} {what}"
        for layer in saes for what in ("SAE", "mean")
    }  # fmt: skip
    found = estimate(spliced, replicates=10)
    ids, valid = torch.from_numpy(corpus.ids), torch.from_numpy(corpus.valid)

    def plain(side, layer, replace):
        def hook(_module, _args, out):
            out = out.clone()
            out[valid] = replace(out[valid])
            return out

        model = copy.deepcopy(setting[side])
        if layer is not None:
            model.model.layers[layer].register_forward_hook(hook)
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double()
        nll = -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return nll[valid[:, 1:]].mean().item()

    for layer, sae in saes.items():
        ce = {}
        for side in SIDES:
            ce[side, "clean"] = plain(side, None, None)
            ce[side, "sae"] = plain(side, layer, lambda x, sae=sae: sae.decode(sae.encode(x)))
            ce[side, "mean"] = plain(side, layer, lambda x: x.mean(0, keepdim=True).expand_as(x))
        loss = {side: ce[side, "sae"] - ce[side, "clean"] for side in SIDES}
        values = found.layers[layer]
        assert values["splice_loss"].value == pytest.approx(loss["q"], abs=2e-6)
        assert values["splice_excess"].value == pytest.approx(loss["q"] - loss["r"], abs=4e-6)
        recovered = (ce["q", "mean"] - ce["q", "sae"]) / (ce["q", "mean"] - ce["q", "clean"])
        assert values["loss_recovered"].value == pytest.approx(recovered, rel=1e-3)


def test_replacements_are_the_reconstruction_and_the_mean(setting, paired):
    measurement, stored = paired(setting["r"], None, setting["corpus"], setting["saes"])
    layer = stand_ins.LAYERS[0]
    x = stored.read(0, stored.sequences).taps[layer]
    sae = setting["saes"][layer]
    torch.testing.assert_close(sae_replacement(sae)(x), sae.decode(sae.encode(x)))
    mean = x[torch.from_numpy(setting["corpus"].valid)].double().mean(0).float()
    replaced = mean_replacement(measurement.layers[layer], "r")(x)
    torch.testing.assert_close(replaced, mean.expand_as(x))
