"""Code of a plugin that ends Python, wherever we run it, is a failure of that plugin only."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

import projcore
from projcore import modules, registry
from projcore._formula import memory_of
from projcore.cli import main, parsers
from projcore.errors import PluginError, PluginWarning, SpecError
from projcore.testing import check_component
from projcore.testing.parts import Momentum


class Odd(BaseException):
    """As those of test runners and event loops."""


class Exits(Momentum):
    """Cannot be built."""

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__(beta)
        raise ERRORS[0]


class ExitsLater(Momentum):
    """Cannot make its memory."""

    def init(self, tensor, settings):
        raise ERRORS[0]


ERRORS: list[BaseException] = []
FAILURES = {"exit": (SystemExit(2), r"it calls sys.exit\(2\)"), "odd": (Odd("no"), "Odd: no")}
INTERRUPTS = [KeyboardInterrupt(), GeneratorExit()]


@pytest.fixture(params=FAILURES)
def failure(request, monkeypatch):
    error, words = FAILURES[request.param]
    monkeypatch.setattr(f"{__name__}.ERRORS", [error])
    return SimpleNamespace(error=error, words=words)


@pytest.fixture(params=INTERRUPTS, ids=lambda error: type(error).__name__)
def interrupt(request, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ERRORS", [request.param])
    return request.param


def raises(*given, **named):
    raise ERRORS[0]


def of(name: str) -> dict[str, str]:
    return {name.lower(): f"{__name__}:{name}"}


def reached_at(plugin, found, installed, place: str):
    """Installs a plugin that fails there; returns what then gets there."""
    if place == "import":
        installed.append(found("bad", lambda: raises()))
        return registry.components
    hooks = plugin(modules={"broken": f"{__name__}:broken"} | of("Exits") | of("ExitsLater"))
    if place == "register":
        hooks = plugin().implement("projcore_register_modules", lambda register: raises())
    elif place == "doctor":
        hooks.implement("projcore_doctor", lambda: raises())
    elif place == "commands":
        hooks.implement("projcore_add_commands", lambda subparsers: raises())
    installed.append(found("bad", hooks))
    return {
        "register": registry.components,
        "doctor": lambda: main(["doctor"]),
        "commands": parsers,
        "component": lambda: registry.load("module", "broken"),
        "import by name": lambda: getattr(modules, "broken"),  # noqa: B009
        "build": lambda: projcore.build("exits()"),
        "memory": lambda: memory_of(ExitsLater, {}),
        "law": lambda: check_component(ExitsLater),
    }[place]


def __getattr__(name: str):
    if name == "broken":
        raise ERRORS[0]
    raise AttributeError(name)


PLACES = ("import", "register", "doctor", "commands", "component", "import by name", "build")
PLACES += ("memory", "law")


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_is_not_swallowed(installed, plugin, found, interrupt, place):
    reach = reached_at(plugin, found, installed, place)
    if place == "doctor":  # the command turns an interrupt into an exit code
        registry.components()
        reach = lambda: registry.manager.call("projcore_doctor")  # noqa: E731
    with pytest.raises(type(interrupt)):
        reach()


@pytest.mark.parametrize("place", ["import", "register"])
def test_where_plugins_are_discovered(installed, plugin, found, failure, place):
    reach = reached_at(plugin, found, installed, place)
    installed.append(found("good", plugin(modules={"momentum": "projcore.testing.parts:Momentum"})))
    with pytest.warns(PluginWarning, match=f"plugin 'bad' .* failed to load: {failure.words}"):
        assert [component.name for component in reach()] == ["momentum"]
    assert str(projcore.build("momentum()")) == "momentum()"
    output = io.StringIO()
    with redirect_stdout(output):
        assert main(["doctor"]) == 1
    assert "plugin 'bad' (dist-bad 1.0): failed" in output.getvalue()


@pytest.mark.parametrize("command", [["list"], ["--version"], ["--help"], ["nothing"]])
def test_where_commands_run(installed, plugin, found, failure, command, capsys):
    reached_at(plugin, found, installed, "commands")
    if command == ["list"]:
        assert main(command) == 0
        return
    if command == ["nothing"]:
        assert main(command) == 2
    else:
        with pytest.raises(SystemExit) as ended:  # by argparse, as for any program
            main(command)
        assert ended.value.code == 0
    assert "plugin 'bad' (dist-bad 1.0) added no commands" in capsys.readouterr().err


def test_in_its_own_check(installed, plugin, found, failure, capsys):
    assert reached_at(plugin, found, installed, "doctor")() == 1
    assert "its own check failed: " + failure.words.replace("\\", "") in capsys.readouterr().out


@pytest.mark.parametrize("place", ["component", "import by name"])
def test_where_a_component_is_imported(installed, plugin, found, failure, place):
    with pytest.raises(PluginError, match=f"'broken' .* cannot be loaded: {failure.words}"):
        reached_at(plugin, found, installed, place)()
    assert main(["doctor", "--import"]) == 1
    assert main(["info", "broken"]) == 1


def test_where_a_component_is_built(installed, plugin, found, failure):
    with pytest.raises(SpecError, match=f"Exits rejected its arguments: {failure.words}"):
        reached_at(plugin, found, installed, "build")()


def test_where_a_component_is_measured(installed, plugin, found, failure, capsys):
    assert reached_at(plugin, found, installed, "memory")() is None
    assert main(["info", "exitslater"]) == 0


def test_where_a_component_is_checked(installed, plugin, found, failure):
    results = reached_at(plugin, found, installed, "law")()
    failed = [result for result in results if result.status == "failed"]
    assert failed
    assert all(type(failure.error).__name__ in result.message for result in failed)


def test_in_a_new_process(site, good):
    """As a plugin whose module is a command line."""
    site.install("bad", "import argparse\nargparse.ArgumentParser().parse_args(['--what'])\n")
    site.install("good", good("thing"))
    result = site.python("""
        from projcore import registry
        assert registry.get("module", "thing").plugin == "good"
    """)
    assert result.returncode == 0, result.stderr
    assert "failed to load: it calls sys.exit(2)" in result.stderr
    result = site.projcore("doctor")
    assert result.returncode == 1
    assert "plugin 'bad' (bad 1.0): failed\n  cause: it calls sys.exit(2)" in result.stdout
