# PYTHON_ARGCOMPLETE_OK
"""The command line, and the commands of plugins.

Its own: ``projcore list | info | plugins | doctor | check | new-plugin``.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterable, Sequence

import projcore
from projcore import registry
from projcore._known import COMMANDS
from projcore._outcome import describe
from projcore.cli import check, doctor, info, listing, new_plugin, plugins
from projcore.component import Plugin
from projcore.errors import PluginWarning, ProjcoreError, suggest

__all__ = ["main", "parsers"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 1 if it failed, 2 if it was not understood."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals without Unicode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # reported below, or by the command itself
        try:
            return _run(words)
        except ProjcoreError as error:
            print(f"projcore: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            # The reader of our output has closed it, as in `projcore list | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print("projcore: interrupted", file=sys.stderr)
            return 130


def _run(words: list[str]) -> int:
    parser, subparsers = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser, subparsers)
    builtin = frozenset(subparsers.choices)
    name = next((word for word in words if not word.startswith("-")), None)
    if name not in builtin:
        # Only if they may be needed, and for --help.
        for plugin, error in _add_commands(subparsers):
            print(f"projcore: {plugin} added no commands: {describe(error)}", file=sys.stderr)
        if name is not None and name not in subparsers.choices:
            _explain(name, subparsers.choices)
            return 2
    parsed = parser.parse_args(words)
    if parsed.command is None:
        parser.print_help()
        return 2
    code: int = parsed.run(parsed) or 0
    sys.stdout.flush()
    return code


def _complete(
    parser: argparse.ArgumentParser,
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Answers a shell's request for completions, if argcomplete is installed, and exits."""
    try:
        import argcomplete
    except ImportError:
        return
    _add_commands(subparsers)
    argcomplete.autocomplete(parser, exit_method=sys.exit)


def parsers() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Returns summary and parser of each command, including those of plugins, by name."""
    _, subparsers = _parser()
    _add_commands(subparsers)
    helps = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}
    return {name: (helps[name], each) for name, each in subparsers.choices.items()}


def _parser() -> tuple[
    argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]
]:
    parser = argparse.ArgumentParser(
        prog="projcore", description="Optimizers in projected spaces for PyTorch."
    )
    parser.add_argument("-V", "--version", action="version", version=projcore.__version__)
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in (listing, info, plugins, doctor, check, new_plugin):
        command.add(subparsers)
    return parser, subparsers


def _add_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[tuple[Plugin, BaseException]]:
    registry.manager.discover(lenient=True)
    outcomes = registry.manager.call("projcore_add_commands", subparsers=subparsers)
    return [(plugin, error) for plugin, _, error in outcomes if error is not None]


def _explain(command: str, commands: Iterable[str]) -> None:
    """Prints why there is no such command."""
    reason = f"no command {command!r}.{suggest(command, commands)} Run 'projcore --help'."
    if command in COMMANDS:
        extra = COMMANDS[command]
        why = f"which is not installed: pip install 'projcore[{extra}]'"
        for plugin in registry.manager.plugins:
            if plugin.distribution == f"projcore-{extra}":
                why = f"which is {plugin.status}. Run 'projcore doctor' for the reason."
        reason = f"the command {command!r} is provided by 'projcore-{extra}', {why}"
    print(f"projcore: {reason}", file=sys.stderr)
