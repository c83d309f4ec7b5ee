"""Holds `versions`."""
