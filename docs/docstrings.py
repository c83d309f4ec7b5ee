"""Turns docstrings into Markdown: mathematics, tables, and the sections that Google's style has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import griffe

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example", "References")
TITLES = {"Args": "Arguments"}


class Docstrings(griffe.Extension):
    """Hands docstrings to the API pages as `markdown` makes them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = markdown(obj.docstring.value)
            obj.docstring.value = re.sub("^Example:$", "Examples:", text, flags=re.MULTILINE)


def markdown(docstring: str) -> str:
    """Returns a docstring with its mathematics and tables in Markdown; sections stay."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${' '.join(found[1].split())}$", text)
    text = re.sub(r"^(Cost|Differs from [^:\n]+):", r"**\1:**", text, flags=re.MULTILINE)
    lines = text.splitlines()
    result: list[str] = []
    while lines:
        line = lines.pop(0)
        if line == ".. math::":
            while lines and not lines[0]:
                del lines[0]
            result += ["$$", *_dedent(_indented(lines)), "$$", ""]
        elif _is_rule(line):
            result += _table(line, lines)
        else:
            result.append(re.sub("::$", ":", line))
    return "\n".join(result).strip()


def page(docstring: str, link: Callable[[str], str]) -> str:
    """Returns a docstring as the text of a page, its sections as lists.

    Args:
        docstring: The docstring.
        link: Returns what stands for a single word in backticks.
    """
    sections = list(_sections(markdown(docstring)))
    parts = [line for title, lines in sections if title is None for line in [*lines, ""]]
    for title, lines in sections:
        if title is not None and title != "Example":
            parts += ["", f"## {TITLES.get(title, title)}", "", *_items(title, _dedent(lines))]
    text = "\n".join(parts)
    text = re.sub(r"(?<!`)`(\w+)`(?!`)", lambda found: link(found[1]), text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    for title, lines in sections:
        if title == "Example":
            text += "\n".join(["", "", "## Example", "", "```pycon", *_dedent(lines), "```"])
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _items(title: str, lines: list[str]) -> list[str]:
    """Makes a list of what a section holds; text stays text."""
    if title == "Returns":
        return lines
    items: list[str] = []
    for line in lines:
        if title == "References":  # all begin in the same column, and end with a stop
            begins = not items or items[-1].endswith(".")
        else:
            begins = not line.startswith(" ")
            line = re.sub(r"^([\w.]+): ", r"``\1``: ", line)
        if begins:
            items.append(f"* {line}")
        else:
            items.append(f"  {line.strip()}".rstrip())
    return items


def _sections(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Yields titles and lines; None is the title of what is in no section."""
    lines = text.splitlines()
    plain: list[str] = []
    while lines:
        line = lines.pop(0)
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            yield None, plain
            plain = []
            yield line[:-1], _indented(lines)
        else:
            plain.append(line)
    yield None, plain


def _indented(lines: list[str]) -> list[str]:
    """Takes the indented lines that come next; blank ones too, but for those at the end."""
    count = 0
    for i, line in enumerate(lines, 1):
        if line.startswith(" "):
            count = i
        elif line:
            break
    taken = lines[:count]
    del lines[:count]
    return taken


def _dedent(lines: list[str]) -> list[str]:
    return inspect.cleandoc("\n" + "\n".join(lines)).splitlines()


def _is_rule(line: str) -> bool:
    return re.fullmatch("=+( +=+)+", line) is not None


def _table(rule: str, lines: list[str]) -> list[str]:
    """Takes the rest of a table; a row whose first cell is empty continues the row above."""
    spans = [found.span() for found in re.finditer("=+", rule)]
    ends = [*(begin for begin, _ in spans[1:]), None]
    parts: list[list[list[str]]] = [[]]  # head and body, or only a body
    while lines and lines[0]:
        line = lines.pop(0)
        cells = [line[begin:end].strip() for (begin, _), end in zip(spans, ends, strict=True)]
        if _is_rule(line):
            parts.append([])
        elif cells[0]:
            parts[-1].append(cells)
        else:
            last = parts[-1][-1]
            last[:] = [f"{old} {new}".strip() for old, new in zip(last, cells, strict=True)]
    *head, body, _ = parts
    first = head[0][0] if head else [""] * len(spans)
    return [_row(first), _row(["---"] * len(spans)), *map(_row, body)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
