"""Turn the corpus of a model into token sequences: text (:mod:`.sources`), what a tokenizer requires
(:mod:`.vocabulary`), sequences of one length (:mod:`.packing`), and a copy on disk (:mod:`.cache`).

The entry point is :func:`qsae_bench.measure.corpus.cache.load_corpus`; what it returns is a
:class:`qsae_bench.measure.corpus.packing.Corpus`. Nothing here imports torch.
"""
