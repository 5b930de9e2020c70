"""Store what was measured, read it back, and compare it.

Imports from ``gate``, ``measure``, ``stats``, ``models``, ``metrics``, ``registry`` and the root modules;
sessions, reports and the command line import from it. Importing the package loads neither torch nor
SQLAlchemy.

Entry points, imported from their modules:
    document.RunDocument: everything that one invocation measured and decided; document.read_run reads it.
    run_folder.RunFolder: the folder of a run while it goes on, locked; run_folder.resume_run takes one up.
    journal.write, journal.read: one finished cell of an unfinished run.
    run_files.write_run: a whole run at once. rows.write_rows, rows.read_rows: its sequence rows.
    compare.compare: stored cells tested against each other; cell_pairs resolves what a user names.
    pareto.dominators: which quantizations are worth having.
    threshold_update.update_from: thresholds that follow from a run; threshold_edit.edited_text writes them.
    history.store.History: all runs in a database, see :mod:`qsae_bench.results.history`.
"""
