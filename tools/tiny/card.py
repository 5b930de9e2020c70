"""Write `quality.json` and `MODEL_CARD.md`: what the run that built the tiny model measured."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "sae-lens")


def _read(out: Path) -> dict[str, Any]:
    file = out / "quality.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _write(out: Path, quality: dict[str, Any]) -> None:
    quality["versions"] = {name: version(name) for name in _PACKAGES}
    fresh = out / ".quality.json.new"
    fresh.write_text(json.dumps(quality, indent=2, allow_nan=False) + "\n")
    fresh.replace(out / "quality.json")


def record_model(out: Path, measured: dict[str, Any]) -> None:
    """Start a new `quality.json`: the SAEs measured on an earlier model say nothing about this one."""
    _write(out, {"model": measured})


def record_saes(out: Path, measured: dict[str, dict[str, Any]]) -> None:
    """Set what was measured on the SAEs, by layer, next to the model they were trained on."""
    quality = _read(out)
    quality["saes"] = {**quality.get("saes", {}), **measured}
    _write(out, quality)


def _sae_rows(saes: dict[str, dict[str, Any]]) -> str:
    head = "| layer | training tokens | FVU | L0 | dead | mean norm | max norm |\n" + "|---" * 7 + "|\n"
    rows = (
        f"| {layer} | {s['training_tokens']:,} | {s['fvu']:.4f} | {s['l0']:.1f} | {s['dead_share']:.1%} "
        f"| {s['mean_residual_norm']:.1f} | {s['max_residual_norm']:.1f} |\n"
        for layer, s in sorted(saes.items())
    )
    return head + "".join(rows)


def render(quality: dict[str, Any], config: dict[str, Any]) -> str:
    """Render the model card from `quality.json` and the model's `config.json`."""
    model, saes = quality["model"], quality["saes"]
    first = next(iter(saes.values()))
    full = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    gap = 100 * (model["heldout_cross_entropy"] / model["train_cross_entropy"] - 1)
    arguments = f"--seed {model['seed']} --steps {model['steps']} --sae-tokens {first['sae_tokens']}"
    return f"""# tiny_gemma3

A Gemma 3 small enough to be part of a test suite, trained on generated English-like text, with JumpReLU
SAEs on its residual stream. It exists so that every measurement of this project can run on a CPU in
seconds, without a download. It knows nothing of the world.

## How it was made

- Text: the grammar in `qsae_bench/tiny/grammar.py`, seed {model["seed"]}. Training, evaluation and SAE
  text come from separately seeded streams.
- Tokenizer: byte-level BPE, {config["vocab_size"]:,} tokens, `<bos>` in front (id
  {config["bos_token_id"]}).
- Model: {model["parameters"]:,} parameters; {config["num_hidden_layers"]} layers of width
  {config["hidden_size"]},
  {config["num_attention_heads"]} query and {config["num_key_value_heads"]} key-value heads of
  {config["head_dim"]},
  MLP of {config["intermediate_size"]}, sliding window of {config["sliding_window"]} except in the layers
  {", ".join(map(str, full))}, tied embeddings. Trained for {model["steps"]:,} steps
  (float32 weights, products in bfloat16) on
  {model["training_tokens"]:,} tokens, each sequence seen once ({model["training_seconds"] / 60:.0f}
  minutes); stored in
  bfloat16.
- SAEs: sae-lens's own trainer, quadratic L0 penalty, unit decoder rows, raw activations in and out,
  `<bos>` left out.
- Versions: {", ".join(f"{name} {number}" for name, number in quality["versions"].items())}.

## What was measured

The stored weights, evaluated in fp32. Cross-entropy in nats per token.

| quantity | value |
|---|---|
| cross-entropy, training text | {model["train_cross_entropy"]:.4f} |
| cross-entropy, held-out text | {model["heldout_cross_entropy"]:.4f} ({gap:+.2f}%) |
| unigram entropy of the training tokens | {model["unigram_entropy"]:.4f} |

SAEs, on {first["heldout_tokens"]:,} held-out tokens; FVU with the per-dimension mean; a feature is
dead when it is active on none of them. Norms are of the residual stream.

{_sae_rows(saes)}
## Rebuild

```
python -m tools.tiny.train {arguments}
```

Another `--seed` gives another text, model and SAEs; `--out` writes them elsewhere. Bit-identical
weights need the versions above, the same number of threads and the same kind of processor.
"""


def write_card(out: Path) -> None:
    """Write `OUT/MODEL_CARD.md` from `OUT/quality.json` and the model's config."""
    config = json.loads((out / "model" / "config.json").read_text())
    (out / "MODEL_CARD.md").write_text(render(_read(out), config))
