"""Real distributions on the path of another Python: found by metadata, the corrupt named."""

from __future__ import annotations

import json

import pytest

STATUSES = """
    import json, warnings
    warnings.simplefilter("ignore")
    from projcore import registry
    from projcore._known import COMMANDS, KNOWN
    ours = {each.extra for each in KNOWN} | set(COMMANDS.values())
    print(json.dumps([
        [each.name, each.distribution, each.version, each.status, each.cause, each.fix]
        for each in registry.plugins() if each.name not in ours
    ]))
    print(json.dumps([each.qualified for each in registry.components()]))
"""


def statuses(site, **environment):
    result = site.python(STATUSES, **environment)
    assert result.returncode == 0, result.stderr
    plugins, components = map(json.loads, result.stdout.splitlines())
    return {plugin[0]: plugin[1:] for plugin in plugins}, components


def test_a_distribution_is_found_by_its_entry_point(site, good):
    site.install("my-things", good("thing"), entry_point="things", version="1.2")
    plugins, components = statuses(site)
    assert plugins["things"] == ["my-things", "1.2", "loaded", "", ""]
    assert "things:thing" in components
    assert "adaptive:adam" in components


def test_an_entry_point_with_a_hyphen_gets_a_name(site, good):
    site.install("my-things", good("thing"), entry_point="My-Things")
    assert "my_things:thing" in statuses(site)[1]


def test_two_with_one_entry_point_name_are_called_by_their_distributions(site, good):
    for name in ("dist-a", "dist-b"):
        site.install(name, good("thing"), entry_point="same")
    code = """
        from projcore import registry
        print([each.qualified for each in registry.components() if each.name == "thing"])
        print(registry.get(None, "dist_a:thing").distribution)
        try:
            registry.get(None, "same:thing")
        except LookupError as error:
            print(error)
    """
    lines = site.python(code).stdout.splitlines()
    assert lines[:2] == ["['dist_a:thing', 'dist_b:thing']", "dist-a"]
    assert "is provided by 2 plugins: 'dist_a:thing'" in lines[2]


def test_the_name_of_one_of_ours_does_not_take_its_place(site, good):
    site.install("intruder", good("thing"), entry_point="basic")
    code = """
        from projcore import registry
        print(registry.get(None, "basic:lr").plugin, registry.get(None, "lr").plugin)
        print(registry.get(None, "basic:thing").plugin)
    """
    assert site.python(code).stdout.split() == ["projcore_basic", "projcore_basic", "intruder"]


@pytest.mark.parametrize("switch", ["things", "my-things", "My_Things"])
def test_it_may_be_disabled_by_either_name(site, good, switch):
    site.install("my-things", good("thing"), entry_point="things")
    assert statuses(site)[0]["things"][2] == "loaded"
    assert statuses(site, PROJCORE_DISABLE_PLUGINS=switch)[0]["things"][2] == "disabled"


@pytest.mark.parametrize("metadata", ["", "Metadata-Version: 2.1\n", "Name: lost\n"])
def test_a_distribution_without_a_name_or_version_is_corrupt(site, good, metadata):
    (site.install("lost", good("thing")) / "METADATA").unlink()
    if metadata:
        (site.path / "lost-1.0.dist-info" / "METADATA").write_text(metadata)
    site.install("fine", good("other"))
    plugins, components = statuses(site)
    distribution, version, status, cause, fix = plugins["lost"]
    assert (distribution, version, status) == ("lost", "1.0", "corrupt")
    assert "METADATA is missing" in cause
    assert "lost-1.0.dist-info and install lost again" in fix
    assert "fine:other" in components
    assert "lost:thing" not in components


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"[projcore]\nno equals sign\n", "entry_points.txt cannot be read"),
        (b"[projcore]\n\xff\xfe = x\n", "entry_points.txt is not text"),
    ],
)
def test_unreadable_entry_points_are_corrupt(site, good, text, cause):
    site.install("garbled", good("thing"), entry_points=text)
    plugins, _ = statuses(site)
    assert plugins["garbled"][2] == "corrupt"
    assert cause in plugins["garbled"][3]


def test_unreadable_entry_points_of_others_are_not_our_business(site, good):
    site.install("elsewhere", good("thing"), entry_points=b"[console_scripts]\n\xff\xfe = x\n")
    assert "elsewhere" not in statuses(site)[0]


def test_a_corrupt_leftover_does_not_hide_the_good_one(site, good):
    leftover = site.install("lowrank", good("thing"), version="0.9")
    (leftover / "METADATA").unlink()
    site.install("lowrank", good("thing"), version="1.0")
    code = """
        import warnings
        warnings.simplefilter("ignore")
        from projcore import registry
        print(registry.get("module", "thing").version)
        print(sorted(each.status for each in registry.plugins() if each.name == "lowrank"))
    """
    assert site.python(code).stdout.splitlines() == ["1.0", "['corrupt', 'loaded']"]


def test_what_pip_could_not_delete_is_ignored(site, good):
    info = site.install("lowrank", good("thing"))
    info.rename(site.path / "~owrank-1.0.dist-info")
    assert "lowrank" not in statuses(site)[0]


def test_a_distribution_seen_twice_counts_once(site, good, tmp_path):
    site.install("twice", good("thing"), entry_point="pair")
    second = tmp_path / "second"
    second.mkdir()
    type(site)(second).install("twice", good("thing"), version="2.0", entry_point="pair")
    path = f"{site.path}:{second}"
    plugins, components = statuses(site, PYTHONPATH=path)
    assert plugins["pair"][1:3] == ["1.0", "loaded"]
    assert components.count("pair:thing") == 1


def test_a_zoo_of_bad_plugins_harms_nobody(site, good):
    site.install("zoo-import", "import no_such_module\n")
    site.install("zoo-api", good("future").replace("PROJCORE_API = 1", "PROJCORE_API = 9"))
    site.install("zoo-hook", good("half") + "    raise RuntimeError('hook broke')\n")
    site.install("zoo-subclass", good("number"))
    site.install("zoo-target", good("nowhere", "fractions:Nothing"))
    site.install("zoo-adam", good("adam"))
    site.install("zoo-star", good("star", "projcore:Chain"))
    site.install("zoo-syntax", "def broken(:\n")
    site.install("zoo-missing", good("gone"), entry_points="[projcore]\nzoo_missing = zoo.gone\n")
    (site.install("zoo-corrupt", good("rotten")) / "METADATA").unlink()
    works = """
        from projcore import Module
        class Works(Module):
            def step(self, update, objective, state):
                return update
    """
    hooks = good("works", "good_one.works:Works")
    site.install("good-one", hooks, files={"works.py": works})

    plugins, components = statuses(site)
    assert {name: facts[2] for name, facts in plugins.items()} == {
        "zoo_import": "failed",
        "zoo_api": "incompatible",
        "zoo_hook": "failed",
        "zoo_subclass": "loaded",
        "zoo_target": "loaded",
        "zoo_adam": "conflict",
        "zoo_star": "loaded",
        "zoo_syntax": "failed",
        "zoo_missing": "failed",
        "zoo_corrupt": "corrupt",
        "good_one": "loaded",
    }
    assert {"good_one:works", "adaptive:adam", "zoo_adam:adam", "basic:lr"} <= {*components}
    assert not {"zoo_hook:half", "zoo_api:future", "zoo_corrupt:rotten"} & {*components}

    doctor = site.projcore("doctor", "--import", "--json")
    assert doctor.returncode == 1
    causes = {
        problem["subject"].split("'")[-2] if "'" in problem["subject"] else problem["subject"]: (
            problem["cause"]
        )
        for problem in json.loads(doctor.stdout)["problems"]
    }
    for subject, cause in {
        "zoo_import": "ModuleNotFoundError: No module named 'no_such_module'",
        "zoo_api": "was written for plugin API 9, this projcore speaks 1",
        "zoo_hook": "RuntimeError: hook broke",
        "zoo_subclass:number": "does not derive from projcore.Module",
        "zoo_target:nowhere": "has no attribute 'Nothing'",
        "zoo_adam": "its module 'adam' is also 'adaptive:adam'",
        "zoo_star:star": "takes *modules",
        "zoo_syntax": "SyntaxError",
        "zoo_missing": "ModuleNotFoundError: No module named 'zoo'",
        "zoo_corrupt": "METADATA is missing",
    }.items():
        assert cause in causes[subject]
    assert not [cause for subject, cause in causes.items() if subject.startswith("good_one")]


def test_a_plugin_installed_after_the_first_look_is_found(site, good):
    text = good("fresh")
    code = f"""
        import pathlib
        from projcore import registry
        assert "fresh" not in [each.name for each in registry.components()]
        root = pathlib.Path({str(site.path)!r})
        (root / "later").mkdir()
        (root / "later" / "__init__.py").touch()
        import textwrap
        (root / "later" / "_plugin.py").write_text(textwrap.dedent({text!r}))
        info = root / "later-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: later\\nVersion: 1.0\\n")
        (info / "entry_points.txt").write_text("[projcore]\\nlater = later._plugin\\n")
        print(registry.get("module", "fresh").qualified)
    """
    result = site.python(code)
    assert result.stdout.strip() == "later:fresh", result.stderr
