"""A bad plugin harms no other, leaves nothing behind, and is named with its cause."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from projcore import registry
from projcore.errors import PluginError, PluginWarning, UnknownNameError
from projcore.plugin import hookimpl


def statuses():
    return {plugin.name: plugin.status for plugin in registry.manager.plugins}


def test_a_bad_plugin_harms_no_other(installed, plugin, found):
    installed += [
        found("first", plugin(modules={"one": "a:One"})),
        found("broken", ModuleNotFoundError("No module named 'x'", name="x")),
        found("last", plugin(modules={"two": "a:Two"})),
    ]
    with pytest.warns(PluginWarning, match="plugin 'broken' .dist-broken 1.0. is installed but"):
        names = [component.name for component in registry.components()]
    assert names == ["one", "two"]
    assert statuses() == {"first": "loaded", "broken": "failed", "last": "loaded"}


def test_what_a_failing_hook_registered_is_rolled_back(installed, plugin, found):
    hooks = plugin(modules={"good": "a:Good", "Bad name": "a:Bad"})
    fired = []
    hooks.implement("projcore_doctor", lambda: fired.append("called"))
    installed.append(found("half", hooks))
    with pytest.warns(PluginWarning, match=r"ArgumentError: register\('Bad name', ...\)"):
        assert registry.components() == ()
    assert registry.manager.call("projcore_doctor") == []
    assert fired == []
    with pytest.raises(UnknownNameError, match=r"provided by plugin 'half'.* failed to load"):
        registry.get("module", "good")


def test_the_root_cause_is_in_the_text(installed, found):
    error = RuntimeError("cannot start")
    error.__cause__ = OSError("disk is full")
    installed.append(found("broken", error))
    with pytest.warns(PluginWarning, match="RuntimeError: cannot start .caused by OSError: disk"):
        registry.components()


def test_an_error_without_a_printable_message_is_reported(installed, found):
    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError

    installed.append(found("nasty", Nasty()))
    with pytest.warns(PluginWarning, match="Nasty: its message cannot be printed"):
        registry.components()


def test_it_is_warned_about_once(installed, found):
    installed.append(found("broken", RuntimeError("no")))
    with pytest.warns(PluginWarning):
        registry.components()
    for _ in range(2):  # warnings are errors here
        with pytest.raises(UnknownNameError):
            registry.get("module", "nothing")


def test_a_failure_is_not_remembered(installed, plugin, found):
    attempts = []

    def load():
        attempts.append(None)
        if len(attempts) == 1:
            raise OSError("not yet")
        return plugin(modules={"late": "a:Late"})

    installed.append(found("slow", load))
    with pytest.warns(PluginWarning):
        registry.components()
    assert registry.get("module", "late").plugin == "slow"
    assert statuses() == {"slow": "loaded"}


def test_a_keyboard_interrupt_is_not_swallowed_and_leaves_no_trace(installed, plugin, found):
    attempts = []

    def hook(register):
        register("half", "a:Half", summary="Is half done.")
        attempts.append(None)
        if len(attempts) == 1:
            raise KeyboardInterrupt

    hooks = plugin().implement("projcore_register_modules", hook)
    installed.append(found("interrupted", hooks))
    with pytest.raises(KeyboardInterrupt):
        registry.components()
    assert registry.manager.components == ()
    assert [component.name for component in registry.components()] == ["half"]


def test_a_hook_module_may_not_look_names_up(installed, plugin, found):
    def load():
        registry.components()

    installed += [found("curious", load), found("good", plugin(modules={"one": "a:One"}))]
    with pytest.warns(PluginWarning, match="'curious' .* looked a name up while plugins were"):
        registry.components()
    assert statuses() == {"curious": "failed", "good": "loaded"}


def test_register_works_only_within_its_hook(installed, plugin, found):
    kept = []
    hooks = plugin().implement("projcore_register_modules", lambda register: kept.append(register))
    installed.append(found("keeper", hooks))
    assert registry.components() == ()
    with pytest.raises(PluginError, match="after its hook had returned"):
        kept[0]("late", "a:Late", summary="Comes too late.")


@pytest.mark.parametrize(
    ("hooks", "cause"),
    [
        (object(), "incompatible"),
        ({}, "incompatible"),
        (None, "incompatible"),
    ],
)
def test_things_that_are_no_hook_module_are_refused(installed, found, hooks, cause):
    installed.append(found("odd", lambda: hooks))
    with pytest.warns(PluginWarning, match="does not say which plugin API"):
        registry.components()
    assert statuses() == {"odd": cause}


def test_a_plugin_without_hooks_is_a_failure(installed, plugin, found):
    installed.append(found("empty", plugin()))
    with pytest.warns(PluginWarning, match="implements no hook"):
        registry.components()


def test_a_name_that_is_taken_fails_and_leaves_the_first_alone(installed, plugin, found):
    first = plugin(modules={"one": "a:One"}).implement("projcore_doctor", lambda: ["still here"])
    again = found("dist", plugin(modules={"two": "a:Two"}), "dist")
    installed += [found("dist", first, "dist"), replace_entry_point(again, "another._plugin")]
    with pytest.warns(PluginWarning, match="ValueError: Plugin name already registered"):
        assert [each.qualified for each in registry.components()] == ["dist:one"]
    assert [result for _, result, _ in registry.manager.call("projcore_doctor")] == [["still here"]]


def replace_entry_point(found, entry_point):
    return replace(found, plugin=replace(found.plugin, entry_point=entry_point))


def test_an_unknown_hook_is_a_failure_with_the_nearest(installed, plugin, found):
    hooks = plugin().implement("projcore_register_module", lambda register: None)
    installed.append(found("typo", hooks))
    with pytest.warns(PluginWarning, match="no hook. Did you mean 'projcore_register_modules'"):
        registry.components()


def test_what_registered_before_an_unknown_hook_is_rolled_back(installed, plugin, found):
    hooks = plugin(modules={"one": "a:One"})
    installed.append(found("typo", hooks.implement("projcore_register_recipe", lambda: None)))
    with pytest.warns(PluginWarning, match="'projcore_register_recipe', which is no hook"):
        assert registry.components() == ()
    assert statuses() == {"typo": "failed"}


def test_an_unknown_hook_may_be_optional(installed, plugin, found):
    hooks = plugin(modules={"one": "a:One"})
    hooks.projcore_of_the_future = hookimpl(optionalhook=True)(lambda: None)
    installed.append(found("modern", hooks))
    registry.components()
    assert statuses() == {"modern": "loaded"}


def test_a_hook_with_other_arguments_is_a_failure(installed, plugin, found):
    hooks = plugin().implement("projcore_register_modules", lambda registry: None)
    installed.append(found("wrong", hooks))
    with pytest.warns(PluginWarning, match="PluginValidationError"):
        registry.components()


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (
            9,
            "plugin 'other' (other 1.0) was written for plugin API 9, this projcore speaks 1: "
            "pip install -U projcore",
        ),
        (0, "was written for plugin API 0, this projcore speaks 1: update the plugin"),
        ("1", "does not say which plugin API it was written for (PROJCORE_API is '1')"),
        (True, "does not say which plugin API it was written for (PROJCORE_API is True)"),
        (None, "does not say which plugin API it was written for (PROJCORE_API is None)"),
    ],
)
def test_only_a_plugin_of_a_known_api_is_loaded(installed, plugin, found, api, message):
    installed.append(found("other", plugin(modules={"x": "a:X"}, api=api), "other"))
    with pytest.warns(PluginWarning) as record:
        assert registry.components() == ()
    assert message in str(record[0].message)
    assert statuses() == {"other": "incompatible"}


def test_the_api_is_a_window(installed, plugin, found, monkeypatch):
    monkeypatch.setattr("projcore._outcome.PROJCORE_API", 4)
    monkeypatch.setattr("projcore._outcome.PROJCORE_API_FLOOR", 2)
    for api in range(1, 6):
        installed.append(found(f"p{api}", plugin(modules={f"m{api}": "a:M"}, api=api)))
    with pytest.warns(PluginWarning, match="this projcore speaks 2 to 4"):
        names = [component.name for component in registry.components()]
    assert names == ["m2", "m3", "m4"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "Galore"}, "the name 'Galore'"),
        ({"name": "1st"}, "the name '1st'"),
        ({"aliases": ("a-b",)}, "the name 'a-b'"),
        ({"aliases": "ab"}, "aliases='ab'"),
        ({"tags": "linear"}, "tags='linear'"),
        ({"target": "a.b.C"}, "the target 'a.b.C'"),
        ({"target": "a:B.c"}, "the target 'a:B.c'"),
        ({"target": dict}, "must be a string, so that nothing is imported"),
        ({"summary": ""}, "summary=''"),
        ({"summary": "two\nlines"}, "A summary is one line"),
    ],
)
def test_a_malformed_registration_is_a_failure(installed, plugin, found, given, message):
    values = {"name": "fine", "target": "a:B", "summary": "Is fine.", **given}

    def hook(register):
        register(values.pop("name"), values.pop("target"), **values)

    installed.append(found("bad", plugin().implement("projcore_register_modules", hook)))
    with pytest.warns(PluginWarning) as record:
        registry.components()
    assert message in str(record[0].message)


def test_a_plugin_may_not_register_a_name_twice(installed, plugin, found):
    hooks = plugin(projections={"twin": "a:A"}, modules={"twin": "a:B"})
    installed.append(found("twins", hooks))
    with pytest.warns(PluginWarning, match=r"register\('twin', ...\) was called twice"):
        assert registry.components() == ()


def test_an_editable_install_that_comes_too_late_says_restart(installed, found):
    error = ModuleNotFoundError("No module named 'fresh'", name="fresh")
    installed.append(found("fresh", error, editable=True))
    with pytest.warns(PluginWarning, match="installed while Python was running, restart Python"):
        registry.components()


def test_threads_load_each_plugin_once(installed, plugin, found):
    loads = []

    def load():
        loads.append(None)
        time.sleep(0.05)
        return plugin(modules={"one": "a:One"})

    installed.append(found("slow", load))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: len(registry.components()), range(8)))
    assert results == [1] * 8
    assert len(loads) == 1
