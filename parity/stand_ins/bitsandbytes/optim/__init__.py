"""Holds `optimizer`."""
