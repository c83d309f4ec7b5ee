"""An exception in place of every single tensor operation of a step, for all components."""

from __future__ import annotations

import pytest

from projcore import registry
from projcore.testing import checks

PLUGINS = sorted({each.plugin for each in registry.components() if each.kind != "recipe"})
CHECKS = [c for c in checks(*PLUGINS, slow=True) if c.law.name == "atomic_everywhere"]


# Without it the laws choose: one operation at least of each line of code.
@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_fault_in_every_operation(check):
    check()
