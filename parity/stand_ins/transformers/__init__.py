"""Stands in for transformers: the authors' packages import one function of it."""
