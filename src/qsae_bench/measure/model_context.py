"""Provide what the cells of one model share: token sequences, SAEs, and the stored reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.files import one_at_a_time, sha256_of
from qsae_bench.machine import environment
from qsae_bench.measure.corpus.cache import load_corpus
from qsae_bench.measure.corpus.packing import Corpus, build_random
from qsae_bench.measure.corpus.vocabulary import predicted_bytes
from qsae_bench.measure.store.entry import DamagedEntry, StoredReference, entry_key
from qsae_bench.models import loading
from qsae_bench.models.architecture import config_of
from qsae_bench.models.validation import check_ids, check_positions
from qsae_bench.progress import ProgressOutput, TokenProgress, progress_of
from qsae_bench.registry.specs import CorpusSpec, ModelSpec, local_folder
from qsae_bench.stats.bootstrap import FEWEST_ROWS
from qsae_bench.stats.sequential import LookPlan, look_sizes

if TYPE_CHECKING:
    from sae_lens import SAE

    from qsae_bench.measure.store import Store
    from qsae_bench.models.loading import Loaded

T = TypeVar("T")


class ModelContext:
    """Hold what one model's cells share; a session has one at a time, for the model whose turn it is."""

    def __init__(
        self,
        spec: ModelSpec,
        corpus: CorpusSpec,
        device: str,
        store: Store,
        qsae_dir: Path,
        report: Callable[[str], None],
    ) -> None:
        """Load the token sequences of ``corpus``, which has the options of the command line.

        Token sequences and SAEs are cached below ``qsae_dir``, so that a warm machine needs no network.
        ``report`` is called with one line about what did not go as usual.

        Raises:
            QsaeError: as :func:`qsae_bench.measure.corpus.cache.load_corpus`, or too few sequences.
        """
        self.spec = spec
        self.device = device
        self.compute_device = loading.compute_device(device)
        self._report = report
        self._qsae_dir = qsae_dir
        self._sae_copies, self._corpora = qsae_dir / "saes", qsae_dir / "corpora"
        self.corpus: Corpus = _corpus(spec, corpus, self._corpora, report)
        if (documents := self.corpus.document_count) < FEWEST_ROWS:
            raise QsaeError(
                f"corpus {corpus.name!r}: {len(self.corpus.ids)} sequences of {documents} documents are "
                f"too few for an interval over documents; at least {FEWEST_ROWS} are needed: raise "
                "--tokens, or use text of more documents"
            )
        self._parts: dict[int, Corpus | None] = {0: self.corpus}
        self._store = store
        self._bytes: dict[int, np.ndarray] = {}
        self._references: dict[int, StoredReference] = {}
        self._saes_are_checked = False
        self._distrusted: set[str] = set()
        """digests of manifests whose files turned out damaged"""

    @cached_property
    def saes(self) -> Mapping[int, SAE[Any]]:
        """layer -> SAE, on the compute device"""
        from qsae_bench.models.saes import load_saes

        return load_saes(self.spec, self.compute_device, self._sae_copies, self._report)

    def check_saes(self, reference: StoredReference, sequence: int) -> None:
        """Compare the SAEs, once, with sae-lens's own forward, on a stored sequence of the reference.

        Raises:
            QsaeError: one is not measured as sae-lens runs it, or gives values that are not finite.
        """
        from qsae_bench.metrics.base import at_least_float32
        from qsae_bench.models.sae_forward import check_forward
        from qsae_bench.models.saes import described

        if self._saes_are_checked:
            return
        taps = reference.read(sequence, sequence + 1).taps
        for layer, sae in self.saes.items():
            check_forward(sae, at_least_float32(taps[layer]), described(self.spec, layer))
        self._saes_are_checked = True

    def sae_notes(self) -> list[str]:
        """Return what is to be said of the SAEs before they are measured on this text."""
        from qsae_bench.models.saes import sae_notes

        ids = self.corpus.ids
        starts_with_bos = bool((ids[:, 0] == ids[0, 0]).all())
        return sae_notes(self.spec, self.saes, ids.shape[1], starts_with_bos)

    @cached_property
    def plan(self) -> LookPlan:
        """the looks, computed once a model: its revision may take reading a folder's weights"""
        asked = self.corpus.spec
        is_short = len(self.corpus.ids) < -(-asked.tokens // (asked.sequence_length - 1))
        planned = (asked.tokens,) if is_short else look_sizes(asked.tokens, asked.max_tokens)
        return LookPlan(planned, is_short, revision(self.spec))

    def part(self, look: int) -> Corpus | None:
        """Return the sequences that a look adds to the look before; None where the text has no more.

        Raises:
            QsaeError: the text is not what it was for the look before.
        """
        if look not in self._parts:
            before = [part for k in range(look) if (part := self.part(k)) is not None]
            spec = replace(self.corpus.spec, tokens=self.plan.looks[look])
            whole = _corpus(self.spec, spec, self._corpora, self._report)
            known, documents = (
                np.concatenate([getattr(part, name) for part in before]) for name in ("ids", "documents")
            )
            start = whole.first(len(known))
            if not np.array_equal(start.ids, known) or not np.array_equal(start.documents, documents):
                raise QsaeError(
                    f"corpus {spec.name!r}: its text changed while the run went on: it can't be extended"
                )
            self._parts[look] = whole.after(len(known)) if len(whole.ids) > len(known) else None
        return self._parts[look]

    def predicted_bytes(self, look: int) -> np.ndarray | None:
        """Return the bytes of text that each sequence of a look's part predicts; None of random ids."""
        part = self.part(look)
        if part is None or self.spec.synthetic or part.spec.kind == "random":
            return None
        if look not in self._bytes:
            self._bytes[look] = predicted_bytes(loading.load_tokenizer(self.spec), part.ids, part.valid)
        return self._bytes[look]

    def reference(
        self, load_reference: Callable[[], Loaded], output: ProgressOutput, look: int
    ) -> StoredReference:
        """Return the stored reference of a look's part, built from a loaded model if there is none."""
        if look not in self._references:
            corpus = self.part(look)
            assert corpus is not None
            made_from = self._made_from(corpus)
            key = entry_key(made_from)
            stored = self._stored(key)
            if stored is None:
                with one_at_a_time(f"{self._qsae_dir.absolute()} {key}"):
                    stored = self._stored(key)  # another worker may have been first
                    if stored is None:
                        self._build(key, made_from, load_reference(), output, corpus, look)
                        stored = self._store.open(key, self.compute_device)
            assert stored is not None
            self._references[look] = stored
            if look:  # the parts add up only if one rule decides in all of them which positions are sinks
                stored.sinks = self.reference(load_reference, output, 0).sinks
            elif not stored.knows_sinks:
                stored.look_for_sinks(corpus.valid, corpus.spec.batch_size)
        return self._references[look]

    def _stored(self, key: str) -> StoredReference | None:
        try:
            stored = self._store.open(key, self.compute_device)
        except DamagedEntry as error:
            self._report(f"{error}; it is rebuilt")
            return None
        if stored is not None and stored.manifest.digest in self._distrusted:
            try:
                # another worker may have rebuilt it, to the same manifest
                stored.fetch(0, stored.sequences)
            except DamagedEntry:
                return None
        return stored

    def retry_if_damaged(self, look: int, work: Callable[[], T]) -> T:
        """Do work that reads a look's reference, and do it once more if its files turn out damaged.

        For the second try the reference is opened again, and rebuilt if it is still the damaged one.
        """
        try:
            return work()
        except DamagedEntry as error:
            self._report(f"{error}; it is rebuilt")
        # outside the handler: the exception keeps its frames alive, and they the model
        if (stored := self._references.pop(look, None)) is not None:
            self._distrusted.add(stored.manifest.digest)
        return work()

    def _build(
        self,
        key: str,
        made_from: dict[str, Any],
        loaded: Loaded,
        output: ProgressOutput,
        corpus: Corpus,
        look: int,
    ) -> None:
        import torch

        from qsae_bench.measure.evaluation import forward_batches
        from qsae_bench.measure.generation import reference_generation
        from qsae_bench.measure.store.entry_writing import ReferencePass
        from qsae_bench.models.architecture import decoder_shapes
        from qsae_bench.models.taps import Head, check_head
        from qsae_bench.models.weights.inspection import weight_summary

        check_head(loaded.model, torch.from_numpy(corpus.ids[:1, :16]).to(loaded.device))
        progress = TokenProgress(f"{self.spec.name} reference", corpus.spec.sequence_length, output)
        with torch.inference_mode():
            batches = forward_batches(loaded.subject, corpus, self.spec.layers, progress)
            valid = torch.from_numpy(corpus.valid)
            weights = weight_summary(
                loaded.model, decoder_shapes(self.spec), loading.default_dtype(self.device)
            )
            generation = None if look else reference_generation(loaded.subject, corpus)
            head = Head.of(loaded.model)
            given = ReferencePass(batches, valid, head, made_from, weights, generation)
            self._store.write(key, given)

    def _made_from(self, corpus: Corpus) -> dict[str, Any]:
        """Return everything that changes the values a reference pass stores."""
        here = environment()
        return {
            "source": self.spec.source if local_folder(self.spec.source) is None else "local",
            "centered": self.spec.sae.centered,
            "revision": self.plan.revision,
            "dtype": str(loading.default_dtype(self.device)),
            "corpus": corpus.fingerprint,
            "batch_size": corpus.spec.batch_size,
            "layers": list(self.spec.layers),
            "torch": here["versions"].get("torch"),
            "transformers": here["versions"].get("transformers"),
            "hardware": sorted({gpu["name"] for gpu in here["gpus"]}) or here["cpu"],
        }


def _corpus(spec: ModelSpec, corpus: CorpusSpec, folder: Path, report: Callable[[str], None]) -> Corpus:
    """Load token sequences in the model's own vocabulary, no longer than the model has positions."""
    if spec.synthetic:
        from qsae_bench.models.synthetic import special_ids

        check_positions(spec.name, config_of(spec), corpus.sequence_length)
        return build_random(corpus, int(spec.architecture["vocab_size"]), *special_ids(spec), corpus.tokens)
    with progress_of(f"{spec.name}: token sequences of {corpus.name}"):
        tokenizer = loading.load_tokenizer(spec)
        config = config_of(spec)  # fetched with the tokenizer
        check_positions(spec.name, config, corpus.sequence_length)
        found = load_corpus(corpus, tokenizer, corpus.tokens, folder, spec.bos_token, report)
    check_ids(corpus.name, config, int(found.ids.max()))
    return found


def revision(spec: ModelSpec) -> str:
    """Return what identifies the weights: a digest of local files, or the hub's commit."""
    if spec.synthetic:
        return "random weights"
    folder = local_folder(spec.source)
    if folder is not None:
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json")):
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(sha256_of(path)))
        return digest.hexdigest()
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(spec.source, "config.json", revision=spec.revision)
    return Path(cached).parent.name if isinstance(cached, str) else spec.revision or "main"
