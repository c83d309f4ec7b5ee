"""``from projcore.projections import ...``."""

from __future__ import annotations

import pickle

import pytest

import projcore
from projcore import modules, projections, recipes
from projcore._known import Known
from projcore.errors import PluginError, PluginWarning


def test_a_class_keeps_its_own_module(installed, plugin, found):
    # Registered in this test, so that it does not depend on which plugins are installed.
    installed.append(found("it", plugin(recipes={"parse": "fractions:Fraction"})))
    from fractions import Fraction

    assert recipes.Fraction is Fraction
    assert pickle.loads(pickle.dumps(recipes.Fraction)) is Fraction


def test_dir_lists_what_is_installed(installed, plugin, found):
    installed.append(
        found("it", plugin({"haar": "a:Haar"}, {"lr": "a:LR"}, {"galore_adamw": "a:galore_adamw"}))
    )
    assert dir(projections) == ["Haar"]
    assert dir(modules) == ["LR"]
    assert dir(recipes) == ["galore_adamw"]


def test_what_nothing_is_known_of_is_a_missing_attribute(installed):
    assert not hasattr(projections, "Whatever")
    with pytest.raises(ImportError):
        from projcore.projections import Whatever  # noqa: F401


@pytest.mark.parametrize("place", ["modules", "projections", "recipes"])
def test_star_imports_all_of_them(place):
    names: dict[str, object] = {}
    exec(f"from projcore.{place} import *", names)
    expected = dir(getattr(projcore, place))
    assert len(expected) > 5
    assert set(expected) == set(names) - {"__builtins__"}
    assert all(names[name] is getattr(getattr(projcore, place), name) for name in expected)


def test_star_leaves_out_what_cannot_be_imported(installed, plugin, found):
    installed += [
        found("good", plugin(modules={"momentum": "projcore.testing.parts:Momentum"})),
        found("broken", plugin(modules={"broken": "no_such_module:Broken"})),
        *(found(name, plugin(modules={f"twice_{name}": f"{name}:Twice"})) for name in "ab"),
        found("failed", RuntimeError("it failed")),
    ]
    names: dict[str, object] = {}
    with pytest.warns(PluginWarning) as record:
        exec("from projcore.modules import *", names)
    assert {name for name in names if not name.startswith("__")} == {"Momentum"}
    texts = sorted(str(each.message) for each in record)
    assert len(texts) == 3
    assert "import *' leaves Broken out: module 'broken' of plugin 'broken'" in texts[0]
    assert "import *' leaves Twice out: module 'Twice' is provided by 2 plugins" in texts[1]
    assert "it failed" in texts[2]


def test_dunders_are_plain_missing_attributes(installed, monkeypatch):
    monkeypatch.setattr("projcore.registry.manager.discover", lambda **_: pytest.fail("looked"))
    with pytest.raises(
        AttributeError, match=r"'projcore\.projections' has no attribute '__path__'"
    ):
        _ = projections.__path__


def test_a_slip_is_an_import_error_with_the_nearest(installed, plugin, found):
    installed.append(found("it", plugin({"galore": "a:GaLore"})))
    with pytest.raises(ImportError, match=r"no projection named 'Galor'\. Did you mean 'GaLore'"):
        from projcore.projections import Galor  # noqa: F401
    with pytest.raises(ImportError, match="Did you mean 'GaLore'"):
        from projcore.projections import galore  # noqa: F401
    with pytest.raises(ImportError, match="There is a projection of that name: it belongs in"):
        from projcore.modules import GaLore  # noqa: F401


def test_what_is_not_installed_says_how_to_get_it(installed, monkeypatch):
    known = (Known("projection", "galore", "GaLore", "lowrank"),)
    monkeypatch.setattr("projcore._lookup.KNOWN", known)
    with pytest.raises(ImportError, match=r"pip install 'projcore\[lowrank\]'"):
        from projcore.projections import GaLore  # noqa: F401


def test_a_failure_to_load_is_our_import_error(installed, plugin, found):
    installed.append(found("it", plugin({"galore": "no_such_module:GaLore"})))
    with pytest.raises(PluginError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        from projcore.projections import GaLore  # noqa: F401


def test_a_failed_plugin_is_quoted(installed, found):
    installed.append(found("lowrank", RuntimeError("it broke")))
    with pytest.warns(PluginWarning), pytest.raises(ImportError, match="it broke"):
        from projcore.projections import Curvelet  # noqa: F401


def test_a_class_name_of_two_is_an_error(installed, plugin, found):
    for name in "ab":
        installed.append(found(name, plugin({f"galore_{name}": f"{name}:GaLore"})))
    with pytest.raises(ImportError, match=r"'a:galore_a' .* Import it from its own package, or"):
        from projcore.projections import GaLore  # noqa: F401


def test_ours_can_be_imported():
    from projcore.projections import To, VectorProjection

    assert (To.__module__, VectorProjection.__name__) == ("projcore_cast.to", "VectorProjection")
