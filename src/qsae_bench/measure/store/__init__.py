"""Store what a reference pass leaves, so that every quantized cell of the model, of this run or of a later
one, reads it instead of running the reference again.

Exports:
    Store: what a store does.
    parse_location: what ``--reference-store`` names.
    open_store: the store at that location.

:mod:`.local` is a folder, :mod:`.remote` a URL with :mod:`.remote_files` below it and a local
:mod:`.cache`; an entry has the same files in both (:mod:`.entry`, :mod:`.entry_writing`). Only the last two
need torch, so that a command line is checked without it.
"""

from qsae_bench.measure.store.location import Store, open_store, parse_location

__all__ = ["Store", "open_store", "parse_location"]
