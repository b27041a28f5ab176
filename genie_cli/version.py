"""The version of genie, which artifacts record."""

__version__ = "0.2.0"
