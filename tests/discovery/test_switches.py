"""The environment's switches."""

from __future__ import annotations

import pytest

from projcore import registry
from projcore.errors import PluginError, PluginWarning


@pytest.fixture
def three(installed, plugin, found):
    for name in "abc":
        installed.append(found(name, plugin(modules={f"m{name}": "x:M"}), f"The-{name}"))
    return installed


def loaded():
    return [each.name for each in registry.plugins() if each.status == "loaded"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "abc"),
        ("b", "ac"),
        ("a, c", "b"),
        ("*", ""),
        ("the-a", "bc"),
        ("A", "bc"),
        (",", "abc"),
    ],
)
def test_plugins_are_disabled_by_name_or_distribution(three, monkeypatch, value, expected):
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", value)
    three[:] = [
        type(each)(each.plugin, frozenset({each.plugin.name, f"the_{each.plugin.name}"}), each.load)
        for each in three
    ]
    assert loaded() == list(expected)


@pytest.mark.parametrize(
    ("value", "expected"), [("", "abc"), ("b", "b"), ("a,c", "ac"), ("*", "abc")]
)
def test_an_allow_list_leaves_the_others_out(three, monkeypatch, value, expected):
    monkeypatch.setenv("PROJCORE_PLUGINS", value)
    assert loaded() == list(expected)
    for plugin in registry.plugins():
        if plugin.name not in expected:
            assert (plugin.status, plugin.cause) == ("disabled", "left out by PROJCORE_PLUGINS")


def test_disabling_beats_allowing(three, monkeypatch):
    monkeypatch.setenv("PROJCORE_PLUGINS", "a,b")
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", "b")
    assert loaded() == ["a"]


def test_a_disabled_plugin_is_not_even_imported(installed, found, monkeypatch):
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", "slow")
    installed.append(found("slow", lambda: pytest.fail("imported")))
    assert loaded() == []


@pytest.mark.parametrize("variable", ["PROJCORE_DISABLE_PLUGINS", "PROJCORE_PLUGINS"])
def test_a_name_that_matches_nothing_warns(three, monkeypatch, variable):
    monkeypatch.setenv(variable, "a,bb")
    with pytest.warns(PluginWarning, match=f"{variable} names 'bb', which is no plugin."):
        registry.components()


@pytest.mark.parametrize("value", ["1", "true"])
def test_strict_makes_a_bad_plugin_an_error_each_time(three, found, monkeypatch, value):
    monkeypatch.setenv("PROJCORE_STRICT_PLUGINS", value)
    three.append(found("bad", RuntimeError("it broke")))
    for _ in range(2):
        with pytest.raises(PluginError, match=r"PROJCORE_STRICT_PLUGINS is set, and:\n.*it broke"):
            registry.components()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_strict_can_be_off(three, found, monkeypatch, value):
    monkeypatch.setenv("PROJCORE_STRICT_PLUGINS", value)
    three.append(found("bad", RuntimeError("it broke")))
    with pytest.warns(PluginWarning):
        assert len(registry.components()) == 3


def test_strict_minds_conflicts_and_switches(three, plugin, found, monkeypatch):
    monkeypatch.setenv("PROJCORE_STRICT_PLUGINS", "1")
    three.append(found("d", plugin(modules={"ma": "x:M"})))
    with pytest.raises(PluginError, match="its module 'ma' is also 'd:ma'"):
        registry.components()
    del three[-1]
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", "zz")
    registry.manager = type(registry.manager)(lambda: list(three))
    with pytest.raises(PluginError, match="names 'zz', which is no plugin"):
        registry.components()


def test_strict_is_content_with_good_plugins(three, monkeypatch):
    monkeypatch.setenv("PROJCORE_STRICT_PLUGINS", "1")
    assert len(registry.components()) == 3
