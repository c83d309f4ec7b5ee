"""What the laws choose a part of, for all components, in full.

An exception in place of every single tensor operation of a step; every projection around and inside
every other.
"""

from __future__ import annotations

import pytest

from projcore import registry
from projcore.testing import checks

PLUGINS = sorted({each.plugin for each in registry.components() if each.kind != "recipe"})
EVERYWHERE = ("atomic_everywhere", "nesting_everywhere")
CHECKS = [c for c in checks(*PLUGINS, slow=True) if c.law.name in EVERYWHERE]


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_everywhere(check):
    check()
