"""Compute statistics by pure functions of numbers: no torch, no files, no pytest.

- :mod:`~qsae_bench.stats.bootstrap`: metrics of a measurement, with intervals (``estimate``).
- :mod:`~qsae_bench.stats.stability`: how headline metrics settle as more sequences are measured.
- :mod:`~qsae_bench.stats.sequential`: looks at a cell, and the critical value of each.
- :mod:`~qsae_bench.stats.comparison`: A against B, with the tests of :mod:`~qsae_bench.stats.permutation`.
- :mod:`~qsae_bench.stats.speed_ratio`: ratios of timed work.
- :mod:`~qsae_bench.stats.changepoints`: changes of level in a series of runs.

May import ``registry``, ``metrics`` and the modules at the root of the package.
"""
