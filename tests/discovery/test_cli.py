"""The command line."""

from __future__ import annotations

import argparse
import json

import pytest

from projcore.cli import main


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
    assert (code, out, err) == (0, "", "Nothing found. Tags: linear.\n")


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
    assert "Nothing is wrong." in out


def test_doctor_names_cause_and_cure(some, found, capsys):
    some.append(found("bad", RuntimeError("it broke")))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert (
        "plugin 'bad' (dist-bad 1.0): failed\n  cause: RuntimeError: it broke\n  cure:  Update it "
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
    assert "list projections, modules and recipes" in out


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
