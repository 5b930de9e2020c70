"""qsae-bench: does a quantized model still behave, and do its SAEs still work on it?"""

__version__ = "0.1.0"
