"""``projcore plugins``: the plugins that were found, and their status."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict

from projcore import registry
from projcore.cli.output import print_json, print_table


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("plugins", help="list plugins and their status")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Prints the plugins."""
    registry.manager.discover(lenient=True)
    names: dict[str, list[str]] = {}
    for component in registry.manager.components:
        names.setdefault(component.plugin, []).append(component.name)
    if arguments.json:
        print_json(
            [
                {**asdict(plugin), "provides": names.get(plugin.name, [])}
                for plugin in registry.manager.plugins
            ]
        )
        return 0
    rows = [
        [
            plugin.name,
            plugin.status,
            plugin.provider,
            plugin.cause or ", ".join(names.get(plugin.name, [])),
        ]
        for plugin in registry.manager.plugins
    ]
    print_table(["plugin", "status", "distribution", "provides"], rows)
    return 0
