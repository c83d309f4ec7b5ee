"""``projcore info NAME``: describes one component."""

from __future__ import annotations

import inspect
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from projcore import registry
from projcore._formula import memory_of
from projcore.cli.output import complete_names, print_json, print_table
from projcore.cli.terminal import readable, type_hints
from projcore.component import Component
from projcore.errors import PluginError


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("info", help="describe a component and its parameters")
    name = parser.add_argument("name", help="its name, for example adam or adaptive:adam")
    complete_names(name)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Prints a component's metadata, parameters and docstring."""
    component = registry.get(None, arguments.name)
    facts: dict[str, Any] = {**asdict(component), "provider": component.provider}
    error = None
    try:
        target = registry.load_component(component)
    except PluginError as failure:
        error = str(failure)
    else:
        hints = type_hints(target)
        facts["parameters"] = [_parameter(each, hints) for each in registry.parameters(target)]
        facts["memory"] = _memory(component, target)
        facts["doc"] = inspect.getdoc(target) or ""
    if arguments.json:
        print_json({**facts, "error": error})
    else:
        _print(facts)
    if error is not None:
        print(f"projcore: {error}", file=sys.stderr)
        return 1
    return 0


def _memory(component: Component, target: Any) -> str | None:
    """Returns the state of a component's first example for a parameter of shape (m, n)."""
    if component.kind in ("choice", "recipe"):
        return None
    example = component.example or {}
    first = example if isinstance(example, Mapping) else next(iter(example), {})
    formula = memory_of(target, dict(first))
    if formula is None:
        return None
    arguments = ", ".join(f"{name}={value!r}" for name, value in first.items())
    return f"{formula} for a parameter of m x n{arguments and f', with {arguments}'}"


def _parameter(parameter: inspect.Parameter, hints: Mapping[str, str]) -> dict[str, str | None]:
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    return {"name": parameter.name, "type": hints.get(parameter.name), "default": default}


def _print(facts: dict[str, Any]) -> None:
    print(f"{facts['name']} ({facts['kind']}): {facts['summary']}\n")
    lines = [
        ("class", facts["target"]),
        ("plugin", f"{facts['plugin']} ({facts['provider']})"),
        ("paper", facts["paper"]),
        ("tags", ", ".join(facts["tags"])),
        ("aliases", ", ".join(facts["aliases"])),
        ("example", facts["example"]),
        ("memory", facts.get("memory")),
    ]
    for name, value in lines:
        if value not in (None, ""):
            print(f"{name + ':':9}{value}")
    if facts.get("parameters"):
        print()
        rows = [
            [each["name"], each["type"] or "", each["default"] or "(required)"]
            for each in facts["parameters"]
        ]
        print_table(["parameter", "type", "default"], rows)
    if facts.get("doc"):
        print(f"\n{readable(facts['doc'])}")
