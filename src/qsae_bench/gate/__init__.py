"""Decide: thresholds and estimates go in, verdicts come out. Pure: no torch, no pytest.

The rule, for an upper bound ``max`` and an interval [low, high]: ``pass`` when high ≤ max, ``fail``
when low > max, else ``inconclusive``, and the cell is measured on more tokens until the interval
leaves the bound or the corpus ends; a lower bound is the mirror image. Example: a KL divergence of
1.4e-3 [1.1e-3, 1.7e-3] passes a bound of 3.7e-3, fails one of 1.0e-3, and is inconclusive against
1.5e-3.

May import from ``stats``, ``registry``, ``metrics`` and the root modules. Entry points:
:func:`~qsae_bench.gate.threshold_file.load_thresholds`, :class:`~qsae_bench.gate.judge.Judge`,
:func:`~qsae_bench.gate.verdict.decide`, :func:`~qsae_bench.gate.exit_status.exit_status`.
"""
