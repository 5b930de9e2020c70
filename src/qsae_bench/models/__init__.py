"""Load models and SAEs onto a device, read their activations, and measure what a quantization did.

Imports :mod:`qsae_bench.registry`, :mod:`qsae_bench.metrics` and the modules at the package's root.

Main entry points: :func:`~qsae_bench.models.loading.load` and :func:`~qsae_bench.models.loading.require`,
:func:`~qsae_bench.models.saes.load_saes`, :class:`~qsae_bench.models.taps.Taps` and
:class:`~qsae_bench.models.taps.Head`, :mod:`~qsae_bench.models.weights` (bits stored, weights changed),
:class:`~qsae_bench.models.memory.PeakMemory`, and for authors of a backend
:func:`~qsae_bench.models.backends.simulates` and :mod:`~qsae_bench.models.backends`. Nothing is
re-exported here: most of these modules import torch as soon as they are called.
"""
