"""Plugins registered by hand, from a notebook."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from projcore import registry
from projcore.errors import ArgumentError, PluginError


def names():
    return [component.qualified for component in registry.components()]


def test_a_plugin_can_be_registered_by_hand(installed, plugin):
    registered = registry.register_plugin(plugin(modules={"one": "a:One"}), "mine")
    assert (registered.name, registered.status) == ("mine", "loaded")
    assert registry.get("module", "one").provider == "registered by hand"
    assert str(registered) == "plugin 'mine' (registered by hand)"


def test_it_need_not_say_its_api_but_may(installed, plugin):
    registry.register_plugin(plugin(modules={"one": "a:One"}, api=None), "mine")
    with pytest.raises(PluginError, match="was written for plugin API 9"):
        registry.register_plugin(plugin(modules={"two": "a:Two"}, api=9), "other")


def test_its_name_is_that_of_the_object(installed, plugin):
    hooks = plugin(modules={"one": "a:One"})
    hooks.__name__ = "package.My-Plugin"
    assert registry.register_plugin(hooks).name == "my_plugin"


def test_registering_again_replaces(installed, plugin):
    registry.register_plugin(plugin(modules={"one": "a:One", "two": "a:Two"}), "mine")
    registry.register_plugin(plugin(modules={"one": "b:One"}), "mine")
    assert names() == ["mine:one"]
    assert registry.get("module", "one").target == "b:One"


def test_a_failure_changes_nothing(installed, plugin):
    registry.register_plugin(plugin(modules={"one": "a:One"}), "mine")
    with pytest.raises(PluginError, match="the target 'nonsense'"):
        registry.register_plugin(plugin(modules={"one": "nonsense"}), "mine")
    assert names() == ["mine:one"]
    assert [each.status for each in registry.plugins()] == ["loaded"]


def test_the_name_of_an_installed_plugin_is_refused(installed, plugin, found):
    installed.append(found("theirs", plugin(modules={"one": "a:One"})))
    with pytest.raises(ArgumentError, match="the name of an installed plugin"):
        registry.register_plugin(plugin(modules={"two": "a:Two"}), "theirs")
    assert names() == ["theirs:one"]


def test_it_can_be_forgotten(installed, plugin):
    registry.register_plugin(plugin(modules={"one": "a:One"}), "mine")
    registry.unregister_plugin("mine")
    assert names() == []
    assert registry.plugins() == ()
    with pytest.raises(ArgumentError, match="no plugin that was registered by hand"):
        registry.unregister_plugin("mine")


def test_it_may_conflict_like_any_other(installed, plugin, found):
    installed.append(found("theirs", plugin(modules={"one": "a:One"})))
    registry.register_plugin(plugin(modules={"one": "b:One"}), "mine")
    assert [each.status for each in registry.plugins()] == ["conflict", "conflict"]
    registry.unregister_plugin("mine")
    assert [each.status for each in registry.plugins()] == ["loaded"]


def test_an_installed_one_of_its_name_found_later_gets_its_distributions(installed, plugin, found):
    registry.register_plugin(plugin(modules={"one": "a:One"}), "mine")
    installed.append(found("mine", plugin(modules={"two": "a:Two"}), "their-mine"))
    assert registry.get("module", "two").qualified == "their_mine:two"
    assert names() == ["mine:one", "their_mine:two"]


def test_an_object_without_a_hash_will_do(installed, plugin):
    """pluggy keeps plugins in sets: with one of these in it, no hook could be called again."""
    hooks = SimpleNamespace(**vars(plugin(modules={"one": "a:One"})))
    registry.register_plugin(hooks, "mine")
    assert names() == ["mine:one"]
    assert registry.manager.call("projcore_doctor") == []
    registry.unregister_plugin("mine")
    assert names() == []
