"""Holds `require_version`."""


def require_version(requirement: str, hint: str | None = None) -> None:
    """Accepts any version: this environment's are pinned."""
