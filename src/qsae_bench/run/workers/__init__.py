"""Measure cells in workers: processes on this machine, or on a Ray cluster.

:mod:`.dispatch` hands out tasks, whatever runs them; :mod:`.local` and :mod:`.ray` are its engines;
:mod:`.worker` does a task.
"""
