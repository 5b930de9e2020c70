"""Implement ``qsae-bench``, the command line: one module a subcommand, which main.py puts together."""
