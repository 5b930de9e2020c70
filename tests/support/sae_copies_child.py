"""Loads SAEs from a local hub and says what became of them: JSON of digests, lines said, or the error.

Reads from stdin ``{"saes": {name: [release, id, layer, source, d_in]}, "copies": folder, "thin": bool}``.
sae-lens takes the number of features of two formats from the release's name (16384, 32768): here they
have fewer, so that files stay small; everything else is sae-lens's own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from qsae_bench.errors import QsaeError
from qsae_bench.models.saes import load_saes, silenced
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import ModelSpec

FEATURES = 24
PARTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def with_few_features() -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    config, parse = loaders.get_gemma_2_config_from_hf, loaders._parse_qwen_scope_repo_id

    def thin_config(*arguments, **named):
        return config(*arguments, **named) | {"d_sae": FEATURES}

    def thin_parse(repository):
        name, _, _ = parse(repository)
        return name, FEATURES, 5

    loaders.get_gemma_2_config_from_hf = thin_config
    loaders._parse_qwen_scope_repo_id = thin_parse


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


def spec(release: str, sae_id: str, layer: int, source: str, d_in: int) -> ModelSpec:
    sae = SaeSpec(d_in=d_in, release=release, id_template=sae_id)
    return ModelSpec("mine", source, layer + 1, d_in, (layer,), sae, "grammar")


def loaded(model: ModelSpec, copies: Path) -> dict:
    said: list[str] = []
    try:
        (sae,) = load_saes(model, "cpu", copies, said.append).values()
    except QsaeError as error:
        return {"kind": type(error).__name__, "message": str(error), "said": said}
    x = torch.randn(7, model.d_model, generator=torch.Generator().manual_seed(1))
    features = sae.encode(x)
    found = {part: digest(getattr(sae, part)) for part in PARTS if hasattr(sae, part)}
    found |= {"encode": digest(features), "decode": digest(sae.decode(features))}
    return {
        "kind": "ok", "digests": found, "said": said, "dtype": str(sae.W_enc.dtype), "class": type(sae).__name__,
        "hook": sae.cfg.metadata.hook_name, "normalize": sae.cfg.normalize_activations,
        "active": int((features > 0).sum()), "features": features.shape[1],
    }  # fmt: skip


def main() -> None:
    given = json.load(sys.stdin)
    with silenced():
        import sae_lens

        assert sae_lens.SAE
    with_few_features()
    copies = Path(given["copies"])
    print(json.dumps({name: loaded(spec(*asked), copies) for name, asked in given["saes"].items()}))


if __name__ == "__main__":
    main()
