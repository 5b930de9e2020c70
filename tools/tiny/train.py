"""Build the embedded model and its SAEs: `python -m tools.tiny.train`.

Without arguments this rebuilds the files that the package ships. The model is in place as soon as it is
trained; the SAEs follow, one layer after the other, and the model card comes last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from qsae_bench.tiny import DATA_DIR, TAP_LAYERS

DEFAULT_STEPS = 3000
DEFAULT_SAE_TOKENS = 120_000
MODEL_LAYERS = 6


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _layer(text: str) -> int:
    value = int(text)
    if not 0 <= value < MODEL_LAYERS:
        raise argparse.ArgumentTypeError(f"the model has layers 0 to {MODEL_LAYERS - 1}, not {value}")
    return value


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.train", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of the text, the initial weights and the batches")
    add("--out", type=Path, default=DATA_DIR, help="folder to write to (default: the package's data)")
    add("--steps", type=_positive, default=DEFAULT_STEPS, help="training steps of the model")
    add("--sae-tokens", type=_positive, default=DEFAULT_SAE_TOKENS, help="training tokens of each SAE")
    add("--layers", type=_layer, nargs="+", default=list(TAP_LAYERS), help="layers that get an SAE")
    add("--threads", type=_positive, default=2, help="CPU threads; another number rounds differently")
    add("--keep-model", action="store_true", help="keep OUT/model as it is and train only the SAEs")
    return parser


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block succeeds, and vanishes when it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def build(args: argparse.Namespace) -> None:
    import torch

    from tools.tiny import card

    report = partial(print, flush=True)

    torch.set_num_threads(args.threads)
    if not args.keep_model:
        from tools.tiny.tokenizer import train_tokenizer
        from tools.tiny.train_model import save_model, train_model

        tokenizer = train_tokenizer(args.seed)
        model, quality = train_model(tokenizer, seed=args.seed, steps=args.steps, report=report)
        with replaced(args.out / "model") as folder:
            save_model(model, tokenizer, folder)
        card.record_model(args.out, asdict(quality))
        report(f"model in place: {args.out / 'model'}")

    from tools.tiny.train_saes import train_saes

    measured = {}
    for layer, save, sae_quality in train_saes(
        args.out / "model", args.layers, seed=args.seed, tokens=args.sae_tokens, report=report
    ):
        with replaced(args.out / "saes" / f"layer{layer}") as folder:
            save(folder)
        measured[str(layer)] = asdict(sae_quality)
    card.record_saes(args.out, measured)
    card.write_card(args.out)
    report(f"done: {args.out / 'MODEL_CARD.md'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; wrong arguments are refused in one line."""
    command = parser()
    args = command.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        command.error(f"--out {args.out} is a file; name a folder")
    if args.keep_model and not (args.out / "model" / "config.json").is_file():
        command.error(f"--keep-model: there is no model in {args.out}; leave the option out to train one")
    build(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
