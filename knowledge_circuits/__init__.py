"""How language models acquire new knowledge, seen from inside."""

__version__ = "0.2.0"
