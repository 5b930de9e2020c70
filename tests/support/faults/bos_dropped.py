"""pytest plugin: sequences are cut without BOS."""

from __future__ import annotations


def pytest_configure(config):
    from qsae_bench.measure.corpus import packing as corpus

    right = corpus.cut

    def without_bos(documents, bos, spec, wanted):
        ids, dropped = right(documents, bos, spec, wanted)
        ids[:, 0] = ids[:, 1]
        return ids, dropped

    corpus.cut = without_bos
