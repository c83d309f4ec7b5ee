"""Docstrings for the terminal: formulas in Unicode, without markup."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

SYMBOLS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε"},
    **{"eta": "η", "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ"},
    **{"sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω", "xi": "ξ", "nu": "ν"},
    **{"Delta": "Δ", "Omega": "Ω", "Pi": "Π", "Sigma": "Σ", "Lambda": "Λ", "Gamma": "Γ"},
    **{"leftarrow": "←", "rightarrow": "→", "to": "→", "mapsto": "↦", "infty": "∞", "ell": "ℓ"},
    **{"sum": "Σ", "prod": "Π", "nabla": "∇", "partial": "∂", "in": "∈", "circ": "∘"},
    **{"times": "×", "cdot": "·", "odot": "⊙", "otimes": "⊗", "oplus": "⊕", "pm": "±"},
    **{"le": "≤", "ge": "≥", "neq": "≠", "ne": "≠", "approx": "≈", "sim": "~", "perp": "⊥"},
    **{"dots": "…", "cdots": "…", "ldots": "…", "top": "ᵀ", "bmod": "mod", "S": "§"},
    **{"lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|", "langle": "⟨", "rangle": "⟩"},
    **{"lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "quad": "\n", "qquad": "\n"},
    **{"left": "", "right": "", ",": " ", ";": " ", " ": " ", "!": "", "\\": "; "},
}
OPENING = (r"\lVert", r"\lvert", r"\langle", r"\lfloor", r"\lceil")
CLOSING = (r"\rVert", r"\rvert", r"\rangle", r"\rfloor", r"\rceil")
ACCENTS = {"hat": "\u0302", "tilde": "\u0303", "bar": "\u0304"}
FONTS = ("operatorname", "mathrm", "text", "mathcal", "mathbb", "mathbf")
RAISED = str.maketrans("0123456789+-()ntijkmpqr", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿᵗⁱʲᵏᵐᵖqʳ")
LONG = 60  # of a type, in characters
LOWERED = str.maketrans("0123456789+-()tijkmnpr", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₜᵢⱼₖₘₙₚᵣ")

_MATH = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +.*|\n(?=\n*\1 +))*)", re.MULTILINE)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)


def readable(docstring: str) -> str:
    r"""Returns a docstring without markup, its formulas as text.

    Example:
        >>> readable(r"Multiplies by :math:`\beta_1^t`; see `LR`.")
        'Multiplies by β₁ᵗ; see LR.'
    """
    text = re.sub(r"(?<=`)\\ ", "", inspect.cleandoc(docstring))  # a space that RST drops
    text = _BLOCK.sub(_block, text)
    text = _MATH.sub(lambda found: " ".join(formula(found[1]).split()), text)
    return re.sub(r"(?<!`)(`{1,2})([^`]+)\1(?!`)", r"\2", text)


def _block(found: re.Match[str]) -> str:
    lines = (line.strip(" ,") for line in formula(" ".join(found[2].split())).splitlines())
    return "\n".join(f"{found[1]}    {line}" for line in lines if line)


def formula(source: str) -> str:
    r"""Returns a formula in TeX as text; each ``\quad`` begins a line.

    Example:
        >>> print(formula(r"u \leftarrow \frac{m / (1 - \beta_1^t)}{\sqrt v + \epsilon}"))
        u ← (m / (1 - β₁ᵗ))/(√v + ε)
    """
    return _Formula(source).until(None)


class _Formula:
    def __init__(self, source: str) -> None:
        self.tokens = _TOKEN.findall(source)

    def until(self, end: str | None) -> str:
        """Reads up to a token, and consumes it."""
        text = ""
        while self.tokens and self.tokens[0] != end:
            closes = self.tokens[0] in CLOSING
            opens = self.tokens[0] in OPENING
            text = (text.rstrip(" ") if closes else text) + self.atom()
            while opens and self.tokens and self.tokens[0].isspace():
                del self.tokens[0]
        del self.tokens[:1]
        return re.sub(r" +", " ", text)

    def atom(self) -> str:
        """Reads a group, a command with its arguments, or a character."""
        token = self.tokens.pop(0)
        if token == "{":
            return self.until("}")
        if token in "^_":
            return _moved(self.argument(), *((RAISED, "^") if token == "^" else (LOWERED, "_")))
        if token == "&":
            return ", "
        if not token.startswith("\\"):
            return " " if token.isspace() else token
        name = token[1:]
        if name == "frac":
            return f"{_grouped(self.argument())}/{_grouped(self.argument())}"
        if name == "sqrt":
            return f"√{_grouped(self.argument())}"
        if name in ACCENTS:
            return self.argument() + ACCENTS[name]
        if name in FONTS:
            return self.argument()
        if name in ("begin", "end"):
            is_matrix = "matrix" in self.argument()
            return ("[]" if is_matrix else "{}")[name == "end"]
        return SYMBOLS[name] if name in SYMBOLS else self.function(name)

    def function(self, name: str) -> str:
        """Reads an argument that must be separated from the function, such as a fraction."""
        following = self.tokens[0] if self.tokens else ""
        if following == r"\frac":
            return f"{name}({self.atom()})"
        return f"{name} " if following.startswith("\\") and following[1:].isalpha() else name

    def argument(self) -> str:
        while self.tokens[0].isspace():
            del self.tokens[0]
        return self.atom()


def _moved(text: str, letters: dict[int, int], sign: str) -> str:
    """Returns a superscript or subscript, in Unicode letters if all of them exist."""
    if text in "ᵀ'":
        return text
    plain = text.replace(" ", "")
    if all(ord(each) in letters for each in plain):
        return plain.translate(letters)
    return f"{sign}{text if text.isalnum() or len(text) == 1 else f'({text})'}"


def _grouped(text: str) -> str:
    """Returns a part of a fraction or root, in brackets if it is more than one factor."""
    factor = r"[\d.]+|[^\W\d][^\W\d\s]*[\w\u0302-\u0304]*|‖[^‖]*‖|√?\([^()]*\)"
    return text if re.fullmatch(factor, text) else f"({text})"


def type_hints(target: Callable[..., Any]) -> dict[str, str]:
    """Returns the types of a callable's parameters, choices spelled out and long ones by name.

    Example:
        >>> def pad(side: Literal["left", "right"] | None = None) -> None: ...
        >>> type_hints(pad)["side"]
        "'left' | 'right' | None"
    """
    init: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    named = {name: _type(hint) for name, hint in inspect.get_annotations(init).items()}
    try:
        hints = typing.get_type_hints(init)
    except Exception:  # names that exist only for type checkers
        return named
    full = {name: _type(hint) for name, hint in hints.items()}
    return {
        name: text if len(text) < LONG or "'" in text else named.get(name, text)
        for name, text in full.items()
    }


def _type(hint: Any) -> str:
    if isinstance(hint, str):
        return hint
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_type, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(hint))
