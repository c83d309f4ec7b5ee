"""The conformance kit: checks the laws on a plugin's components.

In a plugin's tests, one test for each law and component::

    from projcore.testing import parametrize_with_checks


    @parametrize_with_checks("my_plugin")
    def test_laws(check):
        check()

Given the name of a plugin it checks the package too: that finding it imports no torch, that its
names are its own, that ``py.typed`` is there, and more (`projcore.testing.packaging`). An
``expected_failures={"law": "reason"}`` announces what fails for a reason.

On the command line that is ``projcore check my_plugin``. Elsewhere, without pytest::

    from projcore.testing import check_component, summary

    results = check_component("galore")
    print(summary(results))

For tests of your own, `projcore.testing.strategies.tensor_lists` draws tensors of awkward shapes,
dtypes and strides with hypothesis, which has to be installed for it.

Which laws apply follows from a component's kind and from the tags it is registered with:
``linear``, ``lossless``, ``orthonormal``, ``redundant``, ``layout``, ``data_dependent``,
``stochastic``.
"""

from __future__ import annotations

from projcore.testing.check import (
    Check,
    CheckResult,
    check_component,
    checks,
    parametrize_with_checks,
    summary,
)
from projcore.testing.law import Violation
from projcore.testing.subject import Subject

__all__ = [
    "Check",
    "CheckResult",
    "Subject",
    "Violation",
    "check_component",
    "checks",
    "parametrize_with_checks",
    "summary",
]
