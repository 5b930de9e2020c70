"""Show a run document: as terminal tables, markdown, HTML and figures.

May import from ``results`` and below, not from ``run``. Entry points:
:func:`qsae_bench.report.terminal.summary_lines`, :mod:`qsae_bench.report.writing` for the page and
its figures, :mod:`qsae_bench.report.job_summary` for ``summary.md``.
"""
