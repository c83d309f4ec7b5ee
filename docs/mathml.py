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
    made = convert(latex, display="inline" if found[2] == "(" else "block")
    if "\\" in made:
        raise ValueError(f"There is no MathML for {latex!r}. Write it with other commands.")
    return made
