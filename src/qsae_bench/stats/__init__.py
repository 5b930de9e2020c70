"""Intervals and tests over rows: bootstrap, sequential designs, permutation tests, timings, level changes.

May import from ``metrics``, ``registry`` and the root modules. Pure: numpy and scipy, no torch, no
files. Entry points: :func:`qsae_bench.stats.bootstrap.estimate`,
:mod:`qsae_bench.stats.sequential`, :mod:`qsae_bench.stats.comparison`.
"""
