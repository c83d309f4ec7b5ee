"""``projcore doctor``: problems, their causes and fixes."""

from __future__ import annotations

import os
import platform
import traceback
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict
from typing import Any

import importlib_metadata

import projcore
from projcore import registry
from projcore._outcome import BAD, describe
from projcore._switches import ALLOW, DISABLE, STRICT, Switches
from projcore.cli.output import print_json
from projcore.component import Plugin
from projcore.errors import PluginError
from projcore.plugin import PROJCORE_API, PROJCORE_API_FLOOR


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "doctor", help="find problems with plugins, and show how to fix them"
    )
    parser.add_argument(
        "--import",
        dest="load",
        action="store_true",
        help="import every component, which also imports torch",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Prints all problems; the exit code is 1 if there are any."""
    registry.manager.discover(lenient=True)
    problems = [_of_plugin(plugin) for plugin in registry.manager.plugins if _is_bad(plugin)]
    problems += _of_switches()
    problems += _of_hooks()
    if arguments.load:
        problems += _of_components()
    environment = _environment()
    if arguments.json:
        plugins = [asdict(plugin) for plugin in registry.manager.plugins]
        print_json({"environment": environment, "plugins": plugins, "problems": problems})
    else:
        _print(environment, problems)
    return 1 if problems else 0


def _is_bad(plugin: Plugin) -> bool:
    return plugin.status in (*BAD, "conflict") or plugin.slow


def _of_plugin(plugin: Plugin) -> dict[str, str]:
    cause, fix = plugin.cause, plugin.fix
    if not cause:
        cause = "discovering it imports torch, which slows every command"
        fix = "Its author removes torch from __init__.py and the hook module: projcore.plugin.lazy"
    return _problem(str(plugin), plugin.status, cause, fix, plugin.traceback)


def _of_switches() -> list[dict[str, str]]:
    names = [registry.manager.names(plugin.name) for plugin in registry.manager.plugins]
    return [
        _problem(variable, "switch", f"it names {token!r}, which is no plugin", "Correct it.")
        for variable, token in Switches.read().unmatched(names)
    ]


def _of_hooks() -> list[dict[str, str]]:
    problems = []
    for plugin, result, error in registry.manager.call("projcore_doctor"):
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            cause = f"its own check failed: {describe(error)}"
            problems.append(_problem(str(plugin), "check", cause, "Report it.", trace))
        else:
            lines = result if isinstance(result, (list, tuple)) else [result]
            problems += [_problem(str(plugin), "check", str(line), "") for line in lines]
    return problems


def _of_components() -> list[dict[str, str]]:
    problems = []
    for component in registry.manager.components:
        try:
            registry.load_component(component)
        except PluginError as error:
            trace = ""
            if error.__cause__ is not None:
                trace = "".join(traceback.format_exception(error.__cause__))
            problems.append(
                _problem(component.qualified, "component", str(error), "Update its plugin.", trace)
            )
    return problems


def _problem(subject: str, status: str, cause: str, fix: str, trace: str = "") -> dict[str, str]:
    return {"subject": subject, "status": status, "cause": cause, "fix": fix, "traceback": trace}


def _environment() -> dict[str, Any]:
    spoken = f"{PROJCORE_API_FLOOR} to {PROJCORE_API}"
    return {
        "projcore": projcore.__version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "pluggy": _version("pluggy"),
        "plugin API": spoken if PROJCORE_API_FLOOR < PROJCORE_API else str(PROJCORE_API),
        "plugins": len(registry.manager.plugins),
        **{name: os.environ[name] for name in (DISABLE, ALLOW, STRICT) if name in os.environ},
    }


def _version(distribution: str) -> str:
    try:
        return str(importlib_metadata.version(distribution))
    except Exception as error:
        return f"unknown ({describe(error)})"


def _print(environment: dict[str, Any], problems: list[dict[str, str]]) -> None:
    for name, value in environment.items():
        print(f"{name + ':':12}{value}")
    print()
    if not problems:
        print("No problems found.")
    for problem in problems:
        print(f"{problem['subject']}: {problem['status']}")
        print(f"  cause: {problem['cause']}")
        if problem["fix"]:
            print(f"  fix:   {problem['fix']}")
        for line in problem["traceback"].splitlines():
            print(f"    {line}")
