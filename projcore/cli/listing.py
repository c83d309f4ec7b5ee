"""``projcore list``: the installed components."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict

from projcore import registry
from projcore._outcome import BAD
from projcore.cli.output import print_json, print_table
from projcore.component import KINDS
from projcore.errors import ArgumentError, suggest


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("list", help="list projections, modules, choices and recipes")
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--tag", help="only those with this tag")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Prints the components; reports plugins that failed to load on stderr.

    Raises:
        ArgumentError: If no component has the tag.
    """
    components = registry.components(arguments.kind)
    tags = sorted({tag for component in components for tag in component.tags})
    if arguments.tag not in (None, *tags):
        near = suggest(arguments.tag, tags) or f" Tags: {', '.join(tags) or 'none'}."
        kind = arguments.kind or "component"
        raise ArgumentError(f"no {kind} has the tag {arguments.tag!r}.{near}")
    found = [each for each in components if arguments.tag in (None, *each.tags)]
    if arguments.json:
        print_json([asdict(component) for component in found])
    elif not found:
        print("No component is installed, or all plugins are disabled.", file=sys.stderr)
    else:
        rows = [[each.name, each.kind, each.plugin, each.summary] for each in found]
        print_table(["name", "kind", "plugin", "summary"], rows)
    bad = [plugin.name for plugin in registry.plugins() if plugin.status in BAD]
    if bad:
        print(
            f"Plugins that could not be loaded: {', '.join(bad)}. Run 'projcore doctor'.",
            file=sys.stderr,
        )
    return 0
