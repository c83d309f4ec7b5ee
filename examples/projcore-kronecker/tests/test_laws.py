"""What this plugin registers keeps the laws that its tags promise."""

from __future__ import annotations

from projcore.testing import parametrize_with_checks


@parametrize_with_checks("kronecker")
def test_laws(check):
    check()
