"""The Python client of Karta."""

__version__ = "0.1.0"
