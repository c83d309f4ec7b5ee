"""Imported by name by apollo-torch; nothing of it is called."""
