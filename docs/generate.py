"""Writes the pages that follow from the code: components, laws, commands, public names, counts.

Run it with ``make docs`` after a change; a test compares.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docs.docstrings import markdown, page
from projcore import Choice, Module, registry
from projcore.cli import parsers
from projcore.component import Component
from projcore.testing.law import Law
from projcore.testing.laws import LAWS
from projcore.testing.packaging import CHECKS
from projcore.testing.subject import as_subjects

DOCS = Path(__file__).parent
LAUNCHES = DOCS.parent / "tests/launches/table.json"
NOTE = "<!-- Written by make docs: do not edit. -->"

API = {
    "projcore": "The names of `import projcore`. Importing it does not import torch.",
    "projcore.errors": "[Error messages](../errors.md) explains each.",
    "projcore.hookspecs": "[Hooks](../hooks.md) says when each is called, with examples.",
    "projcore.plugin": "For authors of plugins: see [Publishing a plugin](../plugin.md).",
    "projcore.recipe": "For authors of recipes, which are functions that return optimizers.",
    "projcore.registry": "The components that plugins provide, by name.",
    "projcore.spec": "Modules written as strings or as JSON: [Settings and specs](../specs.md).",
    "projcore.testing": "[The conformance kit](../kit.md) says how to use it.",
}

TAGS = {
    "linear": "The map is linear: a closure inside is evaluated at $x_0 + U (z - z_0)$.",
    "lossless": "Projecting and unprojecting a point returns it: $U U^+ x = x$.",
    "orthonormal": "$U^\\top U = I$: lengths and angles inside are those outside.",
    "redundant": "There are more coordinates inside than the map has rank, as where it pads: "
    "`project` undoes `unproject` on the projections of tensors, not on every $z$.",
    "layout": "Elements are only rearranged; elementwise modules inside cost nothing extra.",
    "data_dependent": "The map is learnt from the tensors, in `refresh`.",
    "stochastic": "It draws random numbers.",
}


def pages() -> dict[str, str]:
    """Returns the text of each generated page by its path in the folder of this file."""
    components = ours()
    links = {each.attribute: page_of(each) for each in components}
    texts = {f"components/{page_of(each)}": component_page(each, links) for each in components}
    texts["components/README.md"] = index(components)
    texts["components/tags.md"] = tags(components)
    texts |= {f"api/{module.rpartition('.')[2]}.md": api(module) for module in API}
    texts["laws.md"] = laws()
    texts["commands.md"] = commands()
    texts["launches.md"] = launches()
    return texts


def api(module: str) -> str:
    """Returns the page of a module's public names, which mkdocstrings fills in."""
    home = importlib.import_module(module)
    own = [name for name, value in vars(home).items() if _is_own(module, name, value)]
    lines = [f"# {module}", "", NOTE, "", API[module]]
    for name in getattr(home, "__all__", own):
        if not isinstance(getattr(home, name), ModuleType) and not name.startswith("__"):
            lines += ["", f"::: {module}.{name}"]
    return "\n".join(lines) + "\n"


def _is_own(module: str, name: str, value: object) -> bool:
    return getattr(value, "__module__", None) == module and not name.startswith("_")


def ours() -> list[Component]:
    """Returns the components of this repository's plugins."""
    return [
        each for each in registry.components() if (each.distribution or "").startswith("projcore-")
    ]


# Components.


def index(components: list[Component]) -> str:
    """Returns the page that lists them."""
    lines = ["# Components", "", NOTE, ""]
    lines += ["All components of our plugins, by kind. There is an index [by tag](tags.md), too."]
    for kind, title in (
        ("projection", "Projections"),
        ("module", "Modules"),
        ("choice", "Choices"),
        ("recipe", "Recipes"),
    ):
        chosen = [each for each in components if each.kind == kind]
        if chosen:
            lines += ["", f"## {title}", ""]
            lines += table("name", "plugin", "summary")
            lines += [row(f"[{c.name}]({page_of(c)})", c.plugin, c.summary) for c in chosen]
    return "\n".join(lines) + "\n"


def tags(components: list[Component]) -> str:
    """Returns the page that lists components by tag."""
    found: dict[str, list[Component]] = {name: [] for name in TAGS}
    for component in components:
        for tag in component.tags:
            found.setdefault(tag, []).append(component)
    lines = ["# Tags", "", NOTE, ""]
    lines += [
        "A component is registered with tags. These say which [laws](../laws.md) it keeps:",
        "",
    ]
    lines += [*table("tag", "means", "components")]
    lines += [row(f"`{tag}`", TAGS[tag], names(found[tag])) for tag in TAGS]
    lines += ["", "The others are words to find it by: `projcore list --tag NAME`.", ""]
    lines += table("tag", "components")
    lines += [row(f"`{tag}`", names(found[tag])) for tag in sorted(found.keys() - TAGS.keys())]
    return "\n".join(lines) + "\n"


def names(components: list[Component]) -> str:
    """Returns links to components."""
    return ", ".join(f"[{each.name}]({page_of(each)})" for each in components) or "none yet"


def page_of(component: Component) -> str:
    """Returns the file of a component's page; a recipe may have the name of a module."""
    kinds = {each.kind for each in registry.components() if each.name == component.name}
    shared = component.kind == "recipe" and len(kinds) > 1
    return f"{component.name}{'_recipe' if shared else ''}.md"


def component_page(component: Component, links: dict[str, str]) -> str:
    """Returns the page of one component."""
    target = registry.load(component.kind, component.name)

    def link(word: str) -> str:
        other = links.get(word) if word != component.attribute else None
        return f"[`{word}`]({other})" if other else f"`{word}`"

    lines = [f"# {component.name}", "", NOTE, "", component.summary, ""]
    lines += ["```py", signature(component.attribute, target), "```", "", *table("", "")]
    lines += [row(key, value) for key, value in facts(component, target).items()]
    lines += ["", page(target.__doc__ or "", link)]
    return "\n".join(lines)


def facts(component: Component, target: Any) -> dict[str, str]:
    """Returns what the table of a component says."""
    return {
        "kind": component.kind,
        "import": f"`from projcore.{component.kind}s import {component.attribute}`",
        "install": f"`pip install 'projcore[{component.plugin}]'`",
        "plugin": f"{component.plugin} ({component.provider})",
        **FACTS[component.kind](component, target),
        "tags": ", ".join(f"[{tag}](tags.md)" for tag in component.tags) or "none",
        **({"aliases": ", ".join(map(repr, component.aliases))} if component.aliases else {}),
        "paper": component.paper or "none",
    }


def class_facts(component: Component, cls: type[Module]) -> dict[str, str]:
    """Returns what the table says of a class."""
    if isinstance(cls.scope, property) or isinstance(cls.needs, property):
        raise TypeError(f"{cls.__name__}: scope and needs are plain attributes")
    subject = as_subjects(component)[0]
    module = subject.pick(subject.chain())
    return {
        "scope": f"`{cls.scope}`",
        "needs": ", ".join(f"`{need}`" for need in sorted(cls.needs)) or "nothing",
        "settings": ", ".join(f"`{name}`" for name in module.defaults) or "none",
        "memory": ", ".join(f"`{name}` ({kind})" for name, kind in module.kinds.items()) or "none",
    }


def choice_facts(component: Component, cls: type[Choice]) -> dict[str, str]:
    """Returns what the table says of a choice."""
    name, parameter = cls.host
    made = as_subjects(component)[0].example[parameter]
    return {
        "taken by": f"[{name}]({name}.md), as `{parameter}`",
        "settings": ", ".join(f"`{name}`" for name in made.defaults) or "none",
        "memory": ", ".join(f"`{name}` ({kind})" for name, kind in cls.kinds.items()) or "none",
    }


FACTS = {
    "projection": class_facts,
    "module": class_facts,
    "choice": choice_facts,
    "recipe": lambda component, target: {},
}


def signature(name: str, target: Any) -> str:
    """Returns how it is called; over several lines if it is long."""
    parameters = [
        str(parameter.replace(annotation=_Text(parameter.annotation)))
        if parameter.annotation is not parameter.empty
        else str(parameter)
        for parameter in inspect.signature(target).parameters.values()
    ]
    short = f"{name}({', '.join(parameters)})"
    if len(short) <= 88:
        return short
    return "\n".join([f"{name}(", *(f"    {parameter}," for parameter in parameters), ")"])


class _Text:
    """An annotation that prints without quotes."""

    def __init__(self, annotation: Any) -> None:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        self.text = text

    def __repr__(self) -> str:
        return self.text


# Laws.


def laws() -> str:
    """Returns the page of the laws."""
    lines = ["# Laws", "", NOTE, ""]
    lines += ["The checks of [the conformance kit](kit.md), in order: first plugins as packages,"]
    lines += ["then projections and modules."]
    for law in (*CHECKS, *LAWS):
        where = "For a plugin as a package." if law in CHECKS else applies(law)
        lines += ["", f"## {law.name}", "", f"*{where}*", ""]
        text = markdown(inspect.getdoc(law.body) or "")
        lines += [text.partition("\n\nReturns ")[0]]
    return "\n".join(lines) + "\n"


def applies(law: Law) -> str:
    """Returns where a law applies, in words."""
    text = f"For {law.kind}s" if law.kind else "For projections and modules"
    if law.tags:
        text += f" with the tag{'s' if len(law.tags) > 1 else ''} {' and '.join(sorted(law.tags))}"
    if law.unless:
        text += f", unless {' or '.join(sorted(law.unless))}"
    return text + ("; takes seconds, so it runs when asked for." if law.slow else ".")


# Commands.


COMMANDS = """`projcore COMMAND --help` prints the same, and `projcore -V` the version.
`python -m projcore` is the same command.
A command exits with 1 if it failed, and with 2 if it was not understood.
An interrupt (Ctrl-C) prints one line, keeps the results so far, and exits with 130.

A shell completes commands, options and the names of components once it is told to:

```sh
pip install 'projcore[completion]'
eval "$(register-python-argcomplete projcore)"    # in ~/.bashrc or ~/.zshrc
```"""


def commands() -> str:
    """Returns the page of the command line."""
    lines = ["# Command line", "", NOTE, ""]
    lines += [COMMANDS]
    for name, (summary, parser) in parsers().items():
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        lines += ["", f"## {name}", "", f"{summary[:1].upper()}{summary[1:]}.", ""]
        lines += ["```text", usage, "```", ""]
        if parser.description and parser.description.rstrip(".") != summary:
            lines += [parser.description, ""]
        lines += [*table("argument", "means"), *arguments(parser)]
    return "\n".join(lines) + "\n"


def arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields a row for each argument of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        head = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            head += f" {action.metavar or action.dest.upper()}"
        choices = f" One of {', '.join(map(str, action.choices))}." if action.choices else ""
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        yield row(f"`{head}`", f"{text[:1].upper()}{text[1:].rstrip('.')}.{choices}")


# Launches.


def launches() -> str:
    """Returns the page of what steps ask of a GPU, as the tests count it."""
    counted = json.loads(LAUNCHES.read_text(encoding="utf-8"))
    lines = ["# What a step asks of a GPU", "", NOTE, ""]
    lines += [
        "Counted by tests, without a GPU, for the matrices of two layers of LLaMA-7B with its"
    ]
    lines += [
        "embedding and head: 21 parameters, of float32 but where it says otherwise. Subspaces"
    ]
    lines += [
        "have the ranks of the table in `benchmarks/cases.py`. A *wait* is one of the host for"
    ]
    lines += ["the device, a *copy* one of a tensor between them. *Memory* is what is new at the"]
    lines += ["peak, as a multiple of the parameters. See [Speed](speed.md) for what follows."]
    lines += ["", *table("chain or recipe", "step", "launches", "waits", "copies", "memory")]
    for name, steps in counted.items():
        for kind, found in steps.items():
            numbers = (f"{found[each]:g}" for each in ("launches", "syncs", "copies", "peak"))
            lines += [row(f"`{name}`", kind, *numbers)]
    return "\n".join(lines) + "\n"


# Markdown.


def table(*head: str) -> list[str]:
    """Returns the first lines of a table."""
    return [row(*head), "|" + " --- |" * len(head)]


def row(*cells: str) -> str:
    """Returns a line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Writes all pages, and removes those of components that are gone."""
    texts = pages()
    for path in DOCS.glob("components/*.md"):
        if f"components/{path.name}" not in texts:
            path.unlink()
    for name, text in texts.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
