"""Compiled equals eager, in one graph, for everything that is registered and traceable."""

from __future__ import annotations

import pytest
import torch

from projcore import registry
from projcore.testing import checks, parts
from projcore.testing.law import NotApplicable, Violation

PLUGINS = sorted({each.plugin for each in registry.components() if each.kind != "recipe"})


def compiled(*things):
    """Returns the checks of that law."""
    return [check for check in checks(*things, slow=True) if check.law.name == "compiled"]


@pytest.mark.parametrize("check", compiled(*PLUGINS), ids=str)
def test_compiled_is_eager(check):
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


class Elsewhere(parts.Scale):
    """Does something else when it is compiled."""

    def apply(self, tensors, *args):
        if torch.compiler.is_compiling():
            return [-tensor for tensor in tensors]
        return super().apply(tensors, *args)


def test_that_law_can_fail():
    (check,) = compiled(Elsewhere)
    with pytest.raises(Violation, match="breaks the law 'compiled'"):
        check()
