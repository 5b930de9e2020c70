"""Measure cells, in this process or in workers, and make the run document.

May import from ``results`` and below, not from ``report``. Entry points:
:class:`qsae_bench.run.local_session.LocalSession`,
:class:`qsae_bench.run.worker_session.WorkerSession`, both a
:class:`qsae_bench.run.session.Session`; :func:`qsae_bench.run.document.run_document`.
"""
