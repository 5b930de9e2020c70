"""Hold what is measured, as data: models, their SAEs, quantizations and corpora, by name.

Reads the built-in TOML files and a user's own into frozen specs, checks them, and turns a command line into
the cells (a model at a quantization each) to be measured. Imports only the modules at the package's root,
and no torch, so that ``pytest benchmarks --collect-only`` answers in about a second.

Main entry points: :func:`~qsae_bench.registry.entries.load_registry`, the specs of
:mod:`~qsae_bench.registry.specs` (``Cell``, ``ModelSpec``, ``QuantizationSpec``, ``CorpusSpec``),
:class:`~qsae_bench.registry.sae_spec.SaeSpec`, :mod:`~qsae_bench.registry.selection`,
:data:`~qsae_bench.registry.backends.BACKENDS`, and :func:`~qsae_bench.registry.sae_releases.check_release`.
"""
