"""Docstrings become Markdown."""

from __future__ import annotations

import pytest

from docs.docstrings import markdown, page
from docs.mathml import on_page_content


def test_roles_become_mathematics() -> None:
    assert markdown("The map :math:`U` and\n:math:`U\n^+`.") == "The map $U$ and\n$U ^+$."


def test_a_block_becomes_mathematics() -> None:
    text = "With this,\n\n.. math::\n    u \\leftarrow\n    g\n\nand so on."
    assert markdown(text) == "With this,\n\n$$\nu \\leftarrow\ng\n$$\n\n\nand so on."


@pytest.mark.parametrize("head", [True, False])
def test_a_table_becomes_a_table(head: bool) -> None:
    rule = "====  ======\n"
    top = f"{rule}a     b\n" if head else ""
    text = f"{top}{rule}``x`` one | two\n      three\n``y``  four\n{rule}"
    first = "| a | b |" if head else "|  |  |"
    rows = "| ``x`` | one \\| two three |\n| ``y`` | four |"
    assert markdown(text) == f"{first}\n| --- | --- |\n{rows}"


def test_sections_become_lists_after_the_text() -> None:
    text = """First.

    Args:
        lr: How far,
            at most.
        eps: Small.

    Cost: one pass.

    Example:
        >>> x = `1`

    References:
        One, 2020,
        continued.
        Two, 2021.
    """
    assert page(text, lambda word: f"<{word}>") == (
        "First.\n\n**Cost:** one pass.\n\n"
        "## Arguments\n\n* `lr`: How far,\n  at most.\n* `eps`: Small.\n\n"
        "## References\n\n* One, 2020,\n  continued.\n* Two, 2021.\n\n"
        "## Example\n\n```pycon\n>>> x = `1`\n```\n"
    )


def test_single_words_become_links_where_there_is_a_page() -> None:
    text = page("As `LR` and ``LR``.", lambda word: f"[{word}](lr.md)")
    assert text == "As [LR](lr.md) and `LR`.\n"


def test_mathematics_becomes_mathml() -> None:
    made = on_page_content(r'<p><span class="arithmatex">\(a &lt; U^\top\)</span></p>')
    assert made.startswith("<p><math")
    assert "<msup><mi>U</mi>" in made
    assert "&#x0003C;" in made
    assert "arithmatex" not in made


def test_unknown_mathematics_is_refused() -> None:
    with pytest.raises(ValueError, match="no MathML"):
        on_page_content(r'<div class="arithmatex">\[\notacommand x\]</div>')
