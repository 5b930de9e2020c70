"""Load models and SAEs onto a device, read their residual stream, inspect what a quantization changed.

May import from ``registry``, ``metrics`` and the root modules. Entry points:
:func:`qsae_bench.models.loading.load`, :func:`qsae_bench.models.saes.load_saes`,
:class:`qsae_bench.models.taps.Taps`; one module per backend in :mod:`qsae_bench.models.backends`.
"""
