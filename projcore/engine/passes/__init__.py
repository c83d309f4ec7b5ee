"""Passes: functions that rewrite the end of a region. Any subset of them gives the same result."""
