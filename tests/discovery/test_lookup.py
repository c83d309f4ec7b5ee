"""Names: what is found, and word for word what is said where nothing is."""

from __future__ import annotations

import pytest

from projcore import registry
from projcore._known import Known
from projcore.errors import PluginError, PluginWarning, UnknownNameError

LOWRANK = (Known("projection", "galore", "GaLore", "lowrank", ("low_rank",)),)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr("projcore._lookup.KNOWN", LOWRANK)


def lookup(kind, name):
    with pytest.raises(UnknownNameError) as caught:
        registry.get(kind, name)
    return str(caught.value)


@pytest.fixture
def haar(installed, plugin, found):
    installed.append(found("spectral", plugin(projections={"haar": "a:Haar"})))


def test_a_component_says_who_provides_it(installed, plugin, found):
    hooks = plugin(
        modules={"one": "pkg.mod:One"},
        paper="arXiv:1",
        tags=["x"],
        aliases=["uno"],
        example={"a": 1},
    )
    installed.append(found("numbers", hooks, "my-numbers", "2.5"))
    assert registry.get("module", "one") == registry.Component(
        name="one",
        kind="module",
        target="pkg.mod:One",
        summary="Does one.",
        paper="arXiv:1",
        tags=("x",),
        aliases=("uno",),
        example={"a": 1},
        plugin="numbers",
        distribution="my-numbers",
        version="2.5",
    )


@pytest.mark.parametrize("name", ["one", "uno", "numbers:one", "numbers:uno", "my_numbers:one"])
def test_a_component_is_found_by_name_alias_and_qualified(installed, plugin, found, name):
    hooks = plugin(modules={"one": "a:One"}, aliases=("uno",))
    installed.append(found("numbers", hooks, "my-numbers"))
    assert registry.get("module", name).name == "one"
    assert registry.get(None, name).name == "one"


def test_an_exact_name_beats_an_alias(installed, plugin, found):
    installed += [
        found("a", plugin(modules={"first": "a:First"}, aliases=("second",))),
        found("b", plugin(modules={"second": "b:Second"})),
    ]
    assert registry.get("module", "second").target == "b:Second"


def test_an_alias_of_two_is_an_error(installed, plugin, found):
    installed += [
        found("a", plugin(modules={"one": "a:One"}, aliases=("uno",))),
        found("b", plugin(modules={"eins": "b:Eins"}, aliases=("uno",))),
    ]
    assert "'a:one' (dist-a 1.0), 'b:eins' (dist-b 1.0)" in lookup("module", "uno")


def test_components_are_sorted(installed, plugin, found):
    installed += [
        found("z", plugin(projections={"b": "a:B", "a": "a:A"}, modules={"y": "a:Y"})),
        found("a", plugin(modules={"x": "a:X"})),
    ]
    assert [each.name for each in registry.components()] == ["x", "y", "a", "b"]
    assert [each.name for each in registry.components("projection")] == ["a", "b"]


def test_a_slip_is_answered_with_the_nearest(haar, known):
    assert lookup("projection", "galor") == (
        "no projection named 'galor'. Did you mean 'galore' "
        "(needs pip install 'projcore[lowrank]')? Installed: haar."
    )
    assert lookup("projection", "Ha-ar") == (
        "no projection named 'Ha-ar'. Did you mean 'haar'? Installed: haar."
    )


def test_of_many_near_ones_five_are_named(installed, plugin, found):
    names = [f"galore_{letter}" for letter in "abcdefg"]
    installed.append(found("a", plugin(modules=dict.fromkeys(names, "a:A"))))
    message = lookup("module", "galore_x")
    assert sum(f"'{name}'" in message for name in names) == 5
    assert message.endswith("? Run 'projcore list' for all 7.")


def test_nothing_near_is_answered_with_what_there_is(haar, known):
    assert lookup("projection", "xyz") == "no projection named 'xyz'. Installed: haar."
    assert lookup("module", "xyz") == "no module named 'xyz'. Installed: none."
    assert lookup(None, "xyz") == "no component named 'xyz'. Installed: haar."


@pytest.mark.parametrize(
    "name", ["galore", "low_rank", "lowrank:galore", "projcore_lowrank:galore"]
)
def test_what_is_known_but_not_installed(haar, known, name):
    assert lookup("projection", name) == (
        f"no projection named {name!r}. It is provided by 'projcore-lowrank', which is not "
        "installed: pip install 'projcore[lowrank]'"
    )


def test_what_is_known_and_of_another_kind(haar, known):
    for name in ("galore", "haar"):
        assert lookup("module", name) == (
            f"no module named {name!r}. There is a projection of that name: it belongs in "
            "projections, not here."
        )


def test_what_a_failed_plugin_provides(installed, found, known):
    error = ModuleNotFoundError("No module named 'x'")
    installed.append(found("lowrank", error, "projcore-lowrank", "0.1.0"))
    with pytest.warns(PluginWarning):
        registry.components()
    assert lookup("projection", "galore") == (
        "no projection named 'galore'. It is provided by plugin 'lowrank' (projcore-lowrank "
        "0.1.0), which is installed but failed to load: ModuleNotFoundError: No module named 'x'. "
        "Run 'projcore doctor' for the traceback."
    )


def test_what_a_disabled_plugin_provides(installed, plugin, found, known, monkeypatch):
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", "lowrank")
    hooks = plugin(projections={"galore": "a:GaLore"})
    installed.append(found("lowrank", hooks, "projcore-lowrank", "0.1.0"))
    assert lookup("projection", "galore") == (
        "no projection named 'galore'. It is provided by plugin 'lowrank' (projcore-lowrank "
        "0.1.0), which is disabled by PROJCORE_DISABLE_PLUGINS."
    )


def test_what_another_version_provides(installed, plugin, found, known):
    installed.append(found("lowrank", plugin(modules={"x": "a:X"}), "projcore-lowrank", "0.0.9"))
    assert lookup("projection", "galore") == (
        "no projection named 'galore'. It is provided by another version of 'projcore-lowrank' "
        "than the installed 0.0.9: pip install -U 'projcore[lowrank]'"
    )


def test_what_a_bad_third_party_may_provide(installed, found, known):
    installed.append(found("strange", ImportError("no luck"), "strange-things", "3"))
    with pytest.warns(PluginWarning):
        registry.components()
    assert lookup("projection", "xyz") == (
        "no projection named 'xyz'. Installed: none. Plugin 'strange' (strange-things 3), which "
        "may provide it, is installed but failed to load: ImportError: no luck. "
        "Run 'projcore doctor' for the traceback."
    )
    assert "It is provided by plugin 'strange'" in lookup("projection", "strange:xyz")


def test_a_name_is_looked_for_once_more(installed, plugin, found):
    assert registry.components() == ()
    installed.append(found("fresh", plugin(modules={"fresh": "a:Fresh"})))
    assert registry.components() == ()
    assert registry.get("module", "fresh").plugin == "fresh"


def test_a_hit_does_not_scan_again(installed, plugin, found, monkeypatch):
    installed.append(found("one", plugin(modules={"one": "a:One"})))
    registry.components()
    monkeypatch.setattr(registry.manager, "_scan", lambda: pytest.fail("scanned"))
    registry.get("module", "one")


def test_two_plugins_with_one_name_are_equals(installed, plugin, found):
    hooks = {"galore": "a:GaLore"}, {"galore": "b:GaLore"}
    installed += [
        found("lowrank", plugin(projections=hooks[0]), "projcore-lowrank", "0.1.0"),
        found("other", plugin(projections={**hooks[1], "fine": "b:Fine"}), "other", "2.0"),
    ]
    assert lookup("projection", "galore") == (
        "projection 'galore' is provided by 2 plugins: 'lowrank:galore' (projcore-lowrank 0.1.0), "
        "'other:galore' (other 2.0). Use the qualified name, or disable one with "
        "PROJCORE_DISABLE_PLUGINS."
    )
    assert registry.get("projection", "lowrank:galore").target == "a:GaLore"
    assert registry.get("projection", "other:galore").target == "b:GaLore"
    assert registry.get("projection", "fine").target == "b:Fine"
    for status in registry.plugins():
        assert status.status == "conflict"
        assert "its projection 'galore' is also" in status.cause


def test_a_name_of_two_kinds_is_ambiguous_only_without_the_kind(installed, plugin, found):
    installed += [
        found("a", plugin(modules={"x": "a:X"})),
        found("b", plugin(projections={"x": "b:X"})),
    ]
    assert registry.get("module", "x").plugin == "a"
    assert registry.get("projection", "x").plugin == "b"
    assert "component 'x' is provided by 2 plugins: 'a:x'" in lookup(None, "x")


def load(target, kind, installed, plugin, found):
    installed.append(found("it", plugin(**{f"{kind}s": {"it": target}})))
    with pytest.raises(PluginError) as caught:
        registry.load(kind, "it")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("module", "no_such_module:X", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("module", "fractions:NoSuchClass", "cannot be loaded: AttributeError: "),
        ("module", "fractions:Fraction", "does not derive from projcore.Module, as a module must."),
        ("module", "math:sqrt", "cannot be used: math:sqrt is no class."),
        ("projection", "projcore:Module", "does not derive from projcore.ProjectionBase"),
        ("projection", "projcore:ProjectionBase", "is abstract: it does not define project,"),
        ("module", "projcore:ProjectionBase", "is a projection: register it in projcore_"),
        ("module", "projcore:Transform", "is abstract: it does not define apply."),
        ("module", "projcore:Chain", "takes *modules: a spec could not name its arguments."),
        ("recipe", "math:pi", "is no function."),
    ],
)
def test_what_is_not_what_it_was_registered_as(installed, plugin, found, kind, target, message):
    text = load(target, kind, installed, plugin, found)
    assert text.startswith(f"{kind} 'it' of plugin 'it' (dist-it 1.0) ")
    assert message in text


def test_a_recipe_is_a_function(installed, plugin, found):
    installed.append(found("it", plugin(recipes={"root": "math:sqrt"})))
    assert registry.load("recipe", "root")(4) == 2


def test_names_of_classes(installed, plugin, found):
    from projcore import Chain, Module

    installed.append(found("it", plugin(modules={"mod": "projcore:Module"})))
    assert registry.name_of(Module) == "mod"
    assert registry.name_of(Chain) is None
    installed.append(found("other", plugin(modules={"mod": "other:Mod"})))
    registry.manager.discover(again=True)
    assert registry.name_of(Module) == "it:mod"


def test_naming_a_class_imports_nothing(installed, plugin, found):
    class Sub:
        __module__ = "never_imported.sub"
        __qualname__ = "Sub"

    installed.append(found("it", plugin(modules={"sub": "never_imported:Sub"})))
    assert registry.name_of(Sub) == "sub"
