"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import replace

import pytest

import projcore.__main__
from projcore import registry
from projcore.cli import main
from projcore.testing import law, laws, packaging, parts


def run(capsys, *words):
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def some(installed, plugin, found):
    installed += [
        found("spectral", plugin(projections={"haar": "a:Haar"}, tags=("linear",))),
        found("basic", plugin(modules={"lr": "a:LR"})),
    ]
    return installed


def test_list(some, capsys):
    assert run(capsys, "list") == (
        0,
        "name  kind        plugin    summary\n"
        "lr    module      basic     Does lr.\n"
        "haar  projection  spectral  Does haar.\n",
        "",
    )


def test_list_is_filtered(some, capsys):
    assert "lr" not in run(capsys, "list", "--kind", "projection")[1]
    assert "lr" not in run(capsys, "list", "--tag", "linear")[1]
    code, out, err = run(capsys, "list", "--tag", "none such")
    assert (code, out, err) == (
        1,
        "",
        "projcore: no component has the tag 'none such'. Tags: linear.\n",
    )


def test_list_as_json(some, capsys):
    _, out, _ = run(capsys, "list", "--kind", "projection", "--json")
    (haar,) = json.loads(out)
    assert (haar["name"], haar["tags"], haar["version"]) == ("haar", ["linear"], "1.0")


def test_list_says_when_something_is_missing(some, found, capsys):
    some.append(found("bad", RuntimeError("it broke")))
    code, out, err = run(capsys, "list")
    assert code == 0
    assert "haar" in out
    assert err == "Plugins that could not be loaded: bad. Run 'projcore doctor'.\n"


def test_info(installed, plugin, found, capsys):
    installed.append(
        found("it", plugin(recipes={"half": "fractions:Fraction"}, paper="Euclid", aliases=("f",)))
    )
    code, out, _ = run(capsys, "info", "half")
    assert code == 0
    assert out.startswith("half (recipe): Does half.\n\nclass:   fractions:Fraction\n")
    for text in ("plugin:  it (dist-it 1.0)", "paper:   Euclid", "aliases: f", "numerator"):
        assert text in out
    facts = json.loads(run(capsys, "info", "half", "--json")[1])
    assert facts["error"] is None


def test_info_of_a_class_shows_its_parameters(capsys):
    code, out, _ = run(capsys, "info", "vector")
    assert code == 0
    assert "project_params  bool" in out
    assert "(required)" in out


def test_info_of_what_cannot_be_loaded(some, capsys):
    code, out, err = run(capsys, "info", "haar")
    assert code == 1
    assert "haar (projection): Does haar." in out
    assert "ModuleNotFoundError: No module named 'a'" in err
    assert "No module named" in json.loads(run(capsys, "info", "haar", "--json")[1])["error"]


def test_info_of_what_is_not_there(some, capsys):
    code, out, err = run(capsys, "info", "har")
    assert (code, out) == (1, "")
    assert err.startswith("projcore: no component named 'har'. Did you mean 'haar'?")


def test_plugins(some, found, capsys):
    some.append(found("bad", RuntimeError("it broke")))
    code, out, _ = run(capsys, "plugins")
    assert code == 0
    assert "basic     loaded  dist-basic 1.0     lr\n" in out
    assert "bad       failed  dist-bad 1.0       RuntimeError: it broke\n" in out
    listed = json.loads(run(capsys, "plugins", "--json")[1])
    assert [each["provides"] for each in listed] == [[], ["lr"], ["haar"]]


def test_doctor_finds_nothing(some, capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "No problems found." in out


def test_doctor_names_cause_and_fix(some, found, capsys):
    some.append(found("bad", RuntimeError("it broke")))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert (
        "plugin 'bad' (dist-bad 1.0): failed\n  cause: RuntimeError: it broke\n  fix:   Update it "
        "(pip install -U dist-bad), or switch it off (PROJCORE_DISABLE_PLUGINS=bad).\n"
        "    Traceback"
    ) in out


def test_doctor_imports_only_when_told(some, capsys):
    assert run(capsys, "doctor")[0] == 0
    code, out, _ = run(capsys, "doctor", "--import")
    assert code == 1
    assert "spectral:haar: component" in out
    assert "basic:lr: component" in out


@pytest.mark.parametrize(
    ("answer", "line"),
    [(["One is wrong."], "One is wrong."), ("Text.", "Text."), (3, "3"), ([], None), (None, None)],
)
def test_doctor_asks_the_plugins(some, plugin, found, capsys, answer, line):
    hooks = plugin().implement("projcore_doctor", lambda: answer)
    some.append(found("caring", hooks))
    code, out, _ = run(capsys, "doctor")
    assert code == (1 if line else 0)
    assert line is None or f"plugin 'caring' (dist-caring 1.0): check\n  cause: {line}\n" in out


def test_doctor_survives_a_failing_check(some, plugin, found, capsys):
    def check():
        raise RuntimeError("the check broke")

    some.append(found("fragile", plugin().implement("projcore_doctor", check)))
    some.append(found("caring", plugin().implement("projcore_doctor", lambda: ["Still asked."])))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "its own check failed: RuntimeError: the check broke" in out
    assert "Still asked." in out


def test_doctor_under_strict_and_with_wrong_switches(some, capsys, monkeypatch):
    monkeypatch.setenv("PROJCORE_STRICT_PLUGINS", "1")
    monkeypatch.setenv("PROJCORE_DISABLE_PLUGINS", "spectral,dist_spectral,bassic")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "PROJCORE_DISABLE_PLUGINS: switch\n  cause: it names 'bassic', which is no plugin" in out
    assert "it names 'spectral'" not in out
    assert run(capsys, "list")[0] == 1


def add_command(name, function):
    def hook(subparsers):
        subparsers.add_parser(name).set_defaults(run=function)

    return hook


def test_plugins_add_commands(some, plugin, found, capsys):
    hooks = plugin().implement("projcore_add_commands", add_command("greet", lambda parsed: 7))
    some.append(found("polite", hooks))
    assert run(capsys, "greet") == (7, "", "")


def test_a_command_need_not_return_a_code(some, plugin, found, capsys):
    hooks = plugin().implement("projcore_add_commands", add_command("greet", lambda parsed: None))
    some.append(found("polite", hooks))
    assert run(capsys, "greet")[0] == 0


def test_a_plugin_that_cannot_add_its_command_harms_no_other(some, plugin, found, capsys):
    def broken(subparsers: argparse._SubParsersAction):
        raise RuntimeError("no command")

    some.append(found("a", plugin().implement("projcore_add_commands", broken)))
    greet = add_command("greet", lambda parsed: 0)
    some.append(found("b", plugin().implement("projcore_add_commands", greet)))
    code, _, err = run(capsys, "greet")
    assert code == 0
    assert err == "projcore: plugin 'a' (dist-a 1.0) added no commands: RuntimeError: no command\n"


def test_a_plugin_cannot_replace_our_commands(some, plugin, found, capsys):
    greet = add_command("list", lambda parsed: 7)
    some.append(found("b", plugin().implement("projcore_add_commands", greet)))
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    assert "haar" in out


def test_a_command_of_ours_that_is_not_installed_says_how(some, capsys):
    code, _, err = run(capsys, "compare", "text")
    assert code == 2
    assert err == (
        "projcore: the command 'compare' is provided by 'projcore-lab', which is not installed: "
        "pip install 'projcore[lab]'\n"
    )


def test_without_a_command_it_shows_them(some, capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert "list projections, modules, choices and recipes" in out


@pytest.fixture
def few_laws(monkeypatch):
    """What the command prints does not depend on how many laws there are; its time does."""
    few = [law for law in laws.LAWS if law.name in ("settings", "round_trip", "memory")]
    monkeypatch.setattr(laws, "LAWS", few)


def test_check(few_laws, capsys):
    code, out, err = run(capsys, "check", "lr")
    assert (code, err) == (0, "")
    first, *notes, last = out.splitlines()
    assert first == "lr(lr=0.1): 2 passed, 0 failed, 0 failed as expected, 1 skipped"
    assert notes == ["skipped round_trip: for a projection"]
    assert last.startswith("2 passed, 0 failed, 0 failed as expected, 1 skipped, in ")


def test_check_prints_each_reason_once(few_laws, broken, capsys):
    lines = run(capsys, "check", "fragile")[1].splitlines()
    reason = "it was registered by hand, and is no distribution"
    assert f"skipped api, requires, torch_free, typed: {reason}" in lines


def test_check_of_a_plugin_checks_its_package_too(few_laws, capsys):
    code, out, _ = run(capsys, "check", "cast", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["counts"] == {"passed": len(found["results"])}
    of_package = {each["law"] for each in found["results"] if each["component"] == "cast"}
    assert of_package == {each.name for each in packaging.CHECKS}
    assert {each["component"].partition("(")[0] for each in found["results"]} == {
        *("cast", "to", "view_as_real")
    }


def test_check_slow(few_laws, monkeypatch, capsys):
    slow = law.law(slow=True)(lambda subject: None)
    monkeypatch.setattr(laws, "LAWS", [*laws.LAWS, slow])
    assert run(capsys, "check", "lr")[1].startswith("lr(lr=0.1): 2 passed, ")
    assert run(capsys, "check", "lr", "--slow")[1].startswith("lr(lr=0.1): 3 passed, ")


class Broken(parts.Momentum):
    """Takes anything for a number."""

    def check(self, settings):
        pass


@pytest.fixture
def broken(plugin):
    registry.register_plugin(plugin(modules={"broken": f"{__name__}:Broken"}), "fragile")
    yield
    registry.unregister_plugin("fragile")


def test_check_says_what_is_broken_and_how_to_fix_it(few_laws, broken, capsys):
    code, out, _ = run(capsys, "check", "fragile")
    assert code == 1
    assert (
        "  failed settings: broken breaks the law 'settings': check accepted momentum=nan. "
        "Validate it in check: require(self, 'momentum', settings['momentum'], minimum=...). "
        "Seen with broken(); Scale(), on parameters of shapes"
    ) in out
    assert "Traceback" not in out
    assert " 1 failed, 0 failed as expected, " in out.splitlines()[-1]
    assert "Traceback" in run(capsys, "check", "broken", "--verbose")[1]


def test_a_failure_that_several_checks_share_is_told_once(few_laws, broken, monkeypatch, capsys):
    def fails(subject):
        raise law.Violation("It does not.", "Make it.")

    settings = next(each for each in laws.LAWS if each.name == "settings")
    twice = [replace(settings, name=name, body=fails) for name in ("one", "two")]
    monkeypatch.setattr(laws, "LAWS", twice)
    out = run(capsys, "check", "broken")[1]
    assert "  failed one, two: broken breaks the law 'one': It does not. Make it.\n" in out
    assert out.count("It does not.") == 1
    out = run(capsys, "check", "clip_norm")[1]  # which has several examples
    assert out.count("It does not.") == 1
    assert "-one\n" in out
    assert "  failed one, two: as clip_norm(" in out


def test_check_with_failures_that_are_expected(few_laws, broken, capsys):
    code, out, _ = run(capsys, "check", "broken", "--expect", "settings=as a demonstration")
    assert code == 0
    assert "expected settings: as a demonstration (broken breaks the law" in out
    code, _, err = run(capsys, "check", "broken", "--expect", "setings=as a demonstration")
    assert (code, "which is no check" in err) == (1, True)
    for malformed in ("settings", "settings= ", "=why"):
        code, _, err = run(capsys, "check", "broken", "--expect", malformed)
        assert (code, "Write --expect 'LAW=REASON'." in err) == (1, True)


def test_check_of_nothing_is_an_error(some, plugin, found, capsys):
    some.append(found("bad", RuntimeError("it broke")))
    some.append(found("empty", plugin(modules={})))
    for name, message in [
        ("har", "no component named 'har'. Did you mean 'haar'?"),
        ("empty", "registers nothing, so there is nothing to check"),
        (
            "bad",
            "cannot be checked, because it is installed but failed to load: RuntimeError: it b",
        ),
        ("haar", "No module named 'a'"),
    ]:
        code, out, err = run(capsys, "check", name)
        assert (code, out) == (1, "")
        assert message in err


def test_check_of_a_plugin_that_takes_a_name_of_ours(few_laws, plugin, capsys):
    hooks = plugin(modules={"broken": f"{__name__}:Broken"}, aliases=("lr",))
    registry.register_plugin(hooks, "greedy")
    try:
        _, out, _ = run(capsys, "check", "greedy")
    finally:
        registry.unregister_plugin("greedy")
    assert (
        f"failed names: greedy breaks the law 'names': {__name__}:Broken is registered with the "
        "name 'lr', which projcore-basic has too: with both installed, neither is found by it. "
        "Choose another.\n"
    ) in out


class Undocumented(parts.Momentum):
    pass


class Demanding(parts.Momentum):
    """Has an argument that must be given."""

    def __init__(self, momentum):
        super().__init__(momentum)


@pytest.mark.parametrize(
    ("registered", "law", "sentence"),
    [
        (
            {"modules": {"silent": f"{__name__}:Undocumented"}},
            "documented",
            f"{__name__}:Undocumented has no docstring, which 'projcore info silent' shows. Say ",
        ),
        (
            {"modules": {"demanding": f"{__name__}:Demanding"}},
            "examples",
            "Demanding cannot be built with no arguments: TypeError: ",
        ),
        (
            {"modules": {"broken": f"{__name__}:Broken"}, "recipes": {"cake": "no_such:cake"}},
            "importable",
            "recipe 'cake' of plugin 'odd' (registered by hand) cannot be loaded: ",
        ),
        (
            {"modules": {"broken": f"{__name__}:Broken", "other": f"{__name__}:Demanding"}}
            | {"aliases": ("shared",)},
            "names",
            "component 'shared' is provided by ",
        ),
    ],
)
def test_check_of_what_is_registered_wrongly(few_laws, plugin, capsys, registered, law, sentence):
    registry.register_plugin(plugin(**registered), "odd")
    try:
        code, out, _ = run(capsys, "check", "odd")
    finally:
        registry.unregister_plugin("odd")
    assert code == 1
    assert f"  failed {law}: odd breaks the law {law!r}: {sentence}" in out


def test_new_plugin(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "new-plugin", "projcore-odd_thing", "--kind", "module")
    assert (code, err) == (0, "")
    assert out.startswith("projcore-odd-thing: 11 files, a working module and its tests. Next:")
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(files) == 11
    assert files > {
        "projcore-odd-thing/pyproject.toml",
        "projcore-odd-thing/.github/workflows/test.yml",
        "projcore-odd-thing/src/projcore_odd_thing/odd_thing.py",
        "projcore-odd-thing/tests/test_odd_thing.py",
    }
    text = "".join((tmp_path / file).read_text() for file in files)
    assert "class OddThing(Transform):" in text
    assert 'odd_thing = "projcore_odd_thing._plugin"' in text
    assert re.search(r"Copyright \(c\) 2\d\d\d The projcore-odd-thing authors", text)
    assert re.findall(r"\$\W", text) == ["${"]  # the workflow's own


def test_new_plugin_in_json(installed, tmp_path, capsys):
    folder = tmp_path / "made"
    assert main(["new-plugin", "new-thing", "--directory", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["directory"]) == ("new_thing", str(folder))
    assert "src/projcore_new_thing/new_thing.py" in facts["files"]
    assert all((folder / file).is_file() for file in facts["files"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "A name has lower-case letters"),
        ("projcore-", "A name has lower-case letters"),
        ("Fast", "A name has lower-case letters"),
        ("9lives", "A name has lower-case letters"),
        ("fast--hadamard", "A name has lower-case letters"),
        ("fast hadamard", "A name has lower-case letters"),
        ("../fast", "A name has lower-case letters"),
        ("fäst", "A name has lower-case letters"),
        ("a" * 31, "It has 31 letters, more than 30."),
        ("lambda", "It is reserved in the generated code."),
        ("tensor", "It is reserved in the generated code."),
        ("laws", "It is reserved in the generated code."),
        ("transform", "It is reserved in the generated code."),
        ("adam", "projcore-adaptive has that name already"),
        ("clip-norm", "projcore-basic has that name already"),
        ("vector-projection", "projcore-structural has that name already"),
        ("projcore-cast", "projcore-cast has that name already"),
        ("sound", "The projection 'sonic:sound' (dist-sonic 1.0) has it already."),
        ("sonic", "has it already."),
    ],
)
def test_new_plugin_refuses_a_name(
    installed, plugin, found, name, reason, capsys, tmp_path, monkeypatch
):
    installed.append(found("sonic", plugin(projections={"sound": "a:Sound"})))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "new-plugin", name)
    assert (code, out) == (1, "")
    assert err.startswith(f"projcore: new-plugin was given the name {name!r}. ")
    assert reason in err
    assert not list(tmp_path.iterdir())


def test_new_plugin_overwrites_nothing(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = run(capsys, "new-plugin", "thing", "--directory", str(folder))
        assert (code, out) == (1, "")
        assert "Pass --directory with a " in err
        assert {p.name for p in tmp_path.iterdir()} == {"file", "empty"}
        assert (tmp_path / "file").read_text() == "mine"
    assert run(capsys, "new-plugin", "thing", "--directory", str(tmp_path / "empty"))[0] == 0


def test_new_plugin_refuses_an_author_of_two_lines(capsys, tmp_path):
    words = ["thing", "--directory", str(tmp_path / "it"), "--author", "A\nB"]
    code, _, err = run(capsys, "new-plugin", *words)
    assert (code, "A name is one line of text." in err) == (1, True)
    assert not list(tmp_path.iterdir())


def test_new_plugin_imports_no_torch(site, tmp_path):
    code = """
        import sys
        from projcore.cli import main
        print(main(["new-plugin", "thing", "--directory", sys.argv[-1]]), "torch" in sys.modules)
    """
    done = site.python(code.replace("sys.argv[-1]", repr(str(tmp_path / "it"))))
    assert done.stdout.splitlines()[-1] == "0 False"


def test_output_may_be_cut_off(site):
    code = """
        import subprocess, sys
        script = "import sys; from projcore.cli import main; sys.exit(main(['list', '--json']))"
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        print(process.wait(), process.stderr.read())
    """
    assert site.python(code).stdout == "1 b''\n"


def test_version(capsys):
    for flag in ("-V", "--version"):
        with pytest.raises(SystemExit):
            main([flag])
        assert capsys.readouterr().out == f"{projcore.__version__}\n"


def test_python_m_projcore(site):
    code = """
        import runpy, sys
        sys.argv[1:] = ["-V"]
        runpy.run_module("projcore", run_name="__main__")
    """
    assert site.python(code).stdout == f"{projcore.__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(some, capsys):
    code, out, err = run(capsys, "lst")
    assert (code, out) == (2, "")
    assert err == "projcore: no command 'lst'. Did you mean 'list'? Run 'projcore --help'.\n"


def test_an_unknown_tag_is_an_error(some, capsys):
    code, out, err = run(capsys, "list", "--tag", "linaer")
    assert (code, out) == (1, "")
    assert err == "projcore: no component has the tag 'linaer'. Did you mean 'linear'?\n"
    assert (
        "no module has the tag 'linear'. Tags: none."
        in (run(capsys, "list", "--tag", "linear", "--kind", "module")[2])
    )


def test_an_interrupt_is_one_line(some, plugin, found, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "get", interrupted)
    assert run(capsys, "info", "lr") == (130, "", "projcore: interrupted\n")
    monkeypatch.setattr("projcore.cli.main", interrupted)  # as while it is being imported
    assert projcore.__main__.main() == 130
    assert capsys.readouterr().err == "projcore: interrupted\n"


def test_an_interrupted_check_keeps_its_results(few_laws, capsys, monkeypatch):
    def interrupted(subject):
        raise KeyboardInterrupt

    first = next(each for each in laws.LAWS if each.name == "settings")
    second = replace(first, name="second", body=interrupted)
    monkeypatch.setattr(laws, "LAWS", [first, second])
    code, out, err = run(capsys, "check", "lr")
    assert (code, err) == (130, "projcore: interrupted\n")
    assert out == "lr(lr=0.1): 1 passed, 0 failed, 0 failed as expected, 0 skipped\n"


@pytest.mark.parametrize(
    "words", [["check", "nope"], ["info", "nope"], ["list", "--tag", "nope"], ["nope"]], ids=str
)
def test_a_wrong_name_is_an_error_before_torch_is_imported(site, words):
    code = """
        import io, sys
        from contextlib import redirect_stderr
        from projcore.cli import main
        with redirect_stderr(io.StringIO()) as told:
            code = main(WORDS)
        print(code > 0, "torch" in sys.modules, told.getvalue())
    """
    out = site.python(code.replace("WORDS", repr(words))).stdout
    assert out.startswith("True False projcore: no ")
    assert "'nope'" in out


@pytest.mark.parametrize(("line", "word"), [("projcore li", "list"), ("projcore info ha", "hat")])
def test_a_shell_completes_commands_and_names(site, good, tmp_path, line, word):
    pytest.importorskip("argcomplete")
    site.install("hats", good("hat"))
    answer = tmp_path / "answer"
    site.projcore(
        PYTHONPATH=os.pathsep.join([str(site.path), *sys.path]),
        PROJCORE_PLUGINS="hats",
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        _ARGCOMPLETE_IFS="|",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert answer.read_text().strip() == word
