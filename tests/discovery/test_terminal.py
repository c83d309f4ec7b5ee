"""`projcore info` can be read in a terminal: formulas as text, no markup, choices spelled out."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from projcore import registry
from projcore.cli.terminal import formula, readable, type_hints
from projcore.modules import Adam

COMPONENTS = [
    (component.kind, component.qualified)
    for component in registry.components()
    if component.distribution and component.distribution.startswith("projcore-")
]

FORMULAS = {
    r"u \leftarrow \eta u": "u ← η u",
    r"m \leftarrow \beta_1 m + (1 - \beta_1) u": "m ← β₁ m + (1 - β₁) u",
    r"\frac12 x^{10}": "1/2 x¹⁰",
    r"\frac{u}{2 h}": "u/(2 h)",
    r"\frac{1}{2n}": "1/(2n)",
    r"\frac{\lVert p \rVert}{\lVert u \rVert} u": "‖p‖/‖u‖ u",
    r"\sqrt{\max(m, n)}": "√(max(m, n))",
    r"\sqrt \alpha": "√α",
    r"x_{old}^\top": "x_oldᵀ",
    r"a^{t \psi}": "a^(t ψ)",
    r"\rho_\infty": "ρ_∞",
    r"\hat U": "U\u0302",
    r"\cos\frac{\pi k}{n}": "cos((π k)/n)",
    r"\log\epsilon": "log ε",
    r"\operatorname{sign} u": "sign u",
    r"\begin{cases} a & b > 0 \\ c & \text{otherwise} \end{cases}": "{ a , b > 0 ; c , otherwise }",
    r"\left( \langle g, u \rangle \right)": "( ⟨g, u⟩ )",
}


@pytest.mark.parametrize("source", FORMULAS)
def test_formulas(source: str) -> None:
    assert formula(source) == FORMULAS[source]


def test_each_equation_of_a_block_is_a_line() -> None:
    text = readable(
        r"""Averages.

        .. math::
            m \leftarrow \beta m, \quad
            u \leftarrow m

        With ``beta``, as in `EMA`.
        """
    )
    assert text == "Averages.\n\n    m ← β m\n    u ← m\n\nWith beta, as in EMA."


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[name for _, name in COMPONENTS])
def test_nothing_is_left_of_the_markup(kind: Any, name: str) -> None:
    text = readable(inspect.getdoc(registry.load(kind, name)) or "")
    prose = re.sub(r"^ *(>>>|\.\.\.) .*", "", text, flags=re.MULTILINE)
    assert not re.search(r"\\|`|:math:|^ *\.\. |\{[a-z]+\}", prose, re.MULTILINE)


def test_choices_are_spelled_out() -> None:
    assert type_hints(Adam)["eps_mode"] == "'corrected' | 'hat'"
    assert type_hints(Adam)["betas"] == "tuple[float, float]"


def test_names_that_only_type_checkers_know_stay() -> None:
    def given(x: Unknown, y: int | None = None) -> None: ...  # type: ignore[name-defined] # noqa: F821

    assert type_hints(given) == {"x": "Unknown", "y": "int | None", "return": "None"}
