"""Locate the embedded model `tiny_gemma3` and its SAEs, and generate its corpus.

Only constants live here, so that a plugin may ask where the files are without importing torch.
"""

from __future__ import annotations

from pathlib import Path

DATA_DIR = Path(__file__).resolve().parent / "data"
"""Folder of the shipped files; what `python -m tools.tiny.train` writes by default."""

MODEL_DIR = DATA_DIR / "model"
"""Weights, config and tokenizer, readable by `AutoModelForCausalLM.from_pretrained`."""

SAE_DIR = DATA_DIR / "saes"
"""One folder `layer{L}` for each tap, readable by `sae_lens.SAE.load_from_disk`."""

TAP_LAYERS = (1, 3, 4)
"""Decoder layers whose output (resid_post) has an SAE."""

__all__ = ["DATA_DIR", "MODEL_DIR", "SAE_DIR", "TAP_LAYERS"]
