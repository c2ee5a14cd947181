"""Whole head CT volumes, slice by slice, in the full 12-bit range."""

__version__ = "0.1.0"
