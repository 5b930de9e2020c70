"""What there is to measure: models, quantizations and corpora as TOML entries, read into frozen specs.

May import from the root modules alone. Entry points:
:func:`qsae_bench.registry.entries.load_registry` reads the built-in files and a user's own,
:mod:`qsae_bench.registry.selection` turns a command line into cells.
"""
