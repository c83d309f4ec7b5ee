"""Passes: functions that rewrite how a region ends. Every subset gives the same result."""
