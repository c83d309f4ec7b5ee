"""Writes docs/components: a page for each component, from its registration and docstring.

Run it with ``make docs`` after a change; a test compares.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from projcore import registry
from projcore.registry import Component

FOLDER = Path(__file__).parent / "components"


def pages() -> dict[str, str]:
    """Returns the text of each page by its file name."""
    components = [
        component
        for component in registry.components()
        if (component.distribution or "").startswith("projcore-")
    ]
    texts = {f"{component.name}.md": page(component) for component in components}
    rows = [
        f"| [{c.name}]({c.name}.md) | {c.kind} | {c.plugin} | {c.summary} |"
        for c in sorted(components, key=lambda c: (c.kind, c.name))
    ]
    head = ["# Components", "", "| name | kind | plugin | summary |", "| --- | --- | --- | --- |"]
    texts["README.md"] = "\n".join([*head, *rows]) + "\n"
    return texts


def page(component: Component) -> str:
    """Returns the page of one component."""
    cls = registry.load(component.kind, component.name)
    signature = inspect.signature(cls)
    facts = {
        "kind": component.kind,
        "import": f"`from projcore.{component.kind}s import {cls.__name__}`",
        "install": f"`pip install 'projcore[{component.plugin}]'`",
        "scope": f"`{cls.scope}`",
        "needs": ", ".join(f"`{need}`" for need in sorted(cls.needs)) or "nothing",
        "memory": ", ".join(f"`{k}` ({v})" for k, v in cls.kinds.items()) or "none",
        "tags": ", ".join(component.tags) or "none",
        "paper": component.paper or "none",
    }
    if isinstance(cls.scope, property) or isinstance(cls.needs, property):
        raise TypeError(f"{cls.__name__}: scope and needs are plain attributes")
    lines = [f"# {component.name}", "", component.summary, "", "```python"]
    lines += [f"{cls.__name__}{signature}", "```", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "```text", inspect.cleandoc(cls.__doc__ or ""), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Writes all pages, and removes those of components that are gone."""
    FOLDER.mkdir(exist_ok=True)
    texts = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
