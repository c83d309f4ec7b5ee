"""What this plugin registers keeps the laws that its tags promise."""

from __future__ import annotations

from projcore.testing import Subject, parametrize_with_checks
from projcore.testing.parts import Moments, Momentum, Scale
from projcore_structural import Route

# The registered example remembers nothing; this one does.
ROUTES = {"ndim>=2": [Moments(), Scale(0.1)], "*": Momentum()}
WITH_MEMORY = Subject(Route, "route with memory", example={"routes": ROUTES})


@parametrize_with_checks("structural", WITH_MEMORY)
def test_laws(check):
    check()
