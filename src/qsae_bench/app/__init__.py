"""Provide what a user starts: the pytest plugin with its fixtures and options, and the command line.

May import from every other package. Entry points: :mod:`qsae_bench.app.plugin` for pytest,
:func:`qsae_bench.app.cli.main.main` for ``qsae-bench``. Collecting the benchmarks imports no torch.
"""
