"""What a local hub's faults come to, in a process of its own: the libraries read HF_* at import.

Reads from stdin ``{"cases": [[name, loader, asked], ...], "copies": folder}``, runs every case in a thread
(they mostly wait), and prints JSON: name -> how it ended, after how many seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus import cache as token_cache
from qsae_bench.measure.corpus import sources as text
from qsae_bench.models import hub, loading
from qsae_bench.models.saes import load_saes, silenced
from qsae_bench.registry.sae_spec import SaeSpec
from qsae_bench.registry.specs import REFERENCE, Cell, CorpusSpec, ModelSpec, QuantizationSpec

WIDTH = 32
LIMIT = 110.0


def model_spec(source: str, **changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": source.rpartition("/")[2], "source": source, "n_layers": 2, "d_model": 64, "layers": (1,),
        "sae": SaeSpec(d_in=64, folder="/nowhere"), "corpus": "grammar",
    }  # fmt: skip
    return ModelSpec(**(fields | changes))


def sae_spec(asked: str) -> ModelSpec:
    """A spec whose one layer has this SAE (``size/id``) of Gemma Scope 2."""
    size, _, sae_id = asked.partition("/")
    sae = SaeSpec(d_in=WIDTH, release=f"gemma-scope-2-{size}-res", id_template=sae_id)
    source = f"google/gemma-3-{size}".replace("270m-pt", "270m")
    layers = (int(sae_id.split("_")[1]),)
    return model_spec(source, n_layers=26, d_model=WIDTH, layers=layers, sae=sae)


def corpus_spec(name: str, kind: str) -> CorpusSpec:
    return CorpusSpec(name, kind, sequence_length=64, tokens=500, max_tokens=500, batch_size=2)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(asked: str, copies: Path | None, say: Any) -> object:
    folder = hub.fetch(model_spec(asked), weights=True)
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def sae(asked: str, copies: Path | None, say: Any) -> object:
    spec = sae_spec(asked)
    (loaded,) = load_saes(spec, "cpu", copies, say).values()
    return hashlib.sha256(loaded.W_enc.detach().numpy().tobytes()).hexdigest()


def documents(asked: str, copies: Path | None, say: Any) -> object:
    """pile10k's way, with a repository of this case's own: cases run side by side."""
    return sorted(text.open_text(corpus_spec(asked, "pile10k"), say).documents)


def own_repositories(from_hub: Any) -> Any:
    """:func:`text._from_hub` of a corpus named after a repository, read from there."""

    def renamed(spec: CorpusSpec, repos: Any, *more: Any, **named: Any) -> text.Text:
        own = (spec.name,) if "/" in spec.name else repos
        return from_hub(spec, own, *more, **named)

    return renamed


def corpus(asked: str, copies: Path | None, say: Any) -> object:
    """The shipped kind, tokenized by a model's own tokenizer and kept."""
    tokenizer = loading.load_tokenizer(model_spec(asked))
    made = token_cache.load_corpus(corpus_spec("pile", "pile10k"), tokenizer, 500, copies, None, say)
    return [made.fingerprint, made.source]


def load(asked: str, copies: Path | None, say: Any) -> object:
    """The whole load of a reference."""
    cell = Cell(model_spec(asked), QuantizationSpec(REFERENCE, "none"))
    return type(loading.load(cell, "cpu", loading.default_dtype("cpu")).model).__name__


def require(asked: str, copies: Path | None, say: Any) -> object:
    """What is asked of a gated model before anything else."""
    cell = Cell(model_spec(asked, gated=True), QuantizationSpec(REFERENCE, "none"))
    return loading.require(cell, "cpu")


LOADERS = {
    "model": fetch, "sae": sae, "documents": documents, "corpus": corpus, "load": load, "require": require,
}  # fmt: skip


def main() -> None:
    given = json.load(sys.stdin)
    text._from_hub = own_repositories(text._from_hub)
    copies = Path(given["copies"]) if given.get("copies") else None
    loaders = {loader for _, loader, _ in given["cases"]}
    if "sae" in loaders:
        with silenced():  # once, not in every thread
            from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
        get_pretrained_saes_directory()  # seconds of YAML, which each thread would else read for itself
    if {"documents", "corpus"} & loaders:
        import datasets  # noqa: F401
    import huggingface_hub
    import transformers

    assert huggingface_hub.snapshot_download and transformers.AutoTokenizer
    ended: dict[str, Any] = {}

    def run(name: str, loader: str, asked: str) -> None:
        said: list[str] = []
        started = time.monotonic()
        result: dict[str, Any]
        try:
            result = {"kind": "ok", "value": LOADERS[loader](asked, copies, said.append)}
        except QsaeError as error:
            result = {"kind": type(error).__name__, "message": str(error)}
        except BaseException as error:
            result = {"kind": f"NOT OURS: {type(error).__name__}", "message": str(error)}
        ended[name] = result | {"seconds": time.monotonic() - started, "said": said}

    threads = [threading.Thread(target=run, args=case, daemon=True) for case in given["cases"]]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    sys.stdout.flush()
    print(json.dumps(ended), flush=True)
    # stalled requests' threads are left behind, and some of the libraries' are not daemons
    os._exit(0)


if __name__ == "__main__":
    main()
