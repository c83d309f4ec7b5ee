from __future__ import annotations

from projcore.testing import parametrize_with_checks


@parametrize_with_checks("closure")
def test_laws(check):
    check()
