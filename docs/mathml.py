"""Makes MathML of the mathematics in the pages, so that browsers show it without any script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert


def on_page_content(content: str, **_: Any) -> str:
    """Replaces what ``pymdownx.arithmatex`` marked; MkDocs calls it for each page."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>',
        _mathml,
        content,
        flags=re.DOTALL,
    )


def _mathml(found: re.Match[str]) -> str:
    latex = html.unescape(found[3]).strip()
    if found[2] == "(":
        return _converted(latex, "inline")
    # Each piece is an element of its own, because browsers break no line within one.
    pieces = [_converted(piece, "block") for piece in _pieces(latex)]
    return f'<div class="formula">{" ".join(pieces)}</div>'


def _converted(latex: str, display: str) -> str:
    made = convert(latex, display=display)
    if "\\" in made:
        raise ValueError(f"There is no MathML for {latex!r}. Write it with other commands.")
    return made


def _pieces(latex: str) -> list[str]:
    r"""Splits formulas that stand side by side, between which there is a ``\quad``."""
    pieces, depth, start = [], 0, 0
    for token in re.finditer(
        r"\\begin|\\end|\\q?quad|(?<!\\)[{}]|\\left(?!arrow)|\\right(?!arrow)", latex
    ):
        if token[0] in ("\\quad", "\\qquad"):
            if depth == 0:
                pieces.append(latex[start : token.start()])
                start = token.end()
        else:
            depth += 1 if token[0] in ("\\begin", "{", "\\left") else -1
    return [*pieces, latex[start:]]
