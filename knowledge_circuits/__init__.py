"""How language models acquire new knowledge, seen from inside."""

__version__ = "0.1.0"
