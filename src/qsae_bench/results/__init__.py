"""What a run stores and how it is read again: the run document, rows, journal, history, comparison of runs.

May import from ``measure``, ``gate`` and below. Entry points:
:func:`qsae_bench.results.document.read_run` and ``write_run``, :mod:`qsae_bench.results.compare`,
:mod:`qsae_bench.results.history`. No torch.
"""
