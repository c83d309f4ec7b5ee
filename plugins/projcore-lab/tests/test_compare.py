"""What a user sees of ``projcore compare``."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys

import pytest
import torch
from matplotlib.image import imread

from projcore_lab._plugin import TASKS
from projcore_lab.functions import FUNCTIONS, FunctionTask
from projcore_lab.lineup import PRESETS, contender
from projcore_lab.report import LEGEND
from projcore_lab.text import Text

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("error")]

PAIR = ("torch-adam", "torch-adamw")


@pytest.mark.parametrize("task", ["text", "digits", "rosenbrock"])
def test_the_default_lineup_of_every_task(compare, story, task):
    options = ["--text", str(story)] if task == "text" else []
    result = compare(task, "--steps", "4", *options)
    assert result.code == 0, result.output
    assert len(result.runs) == {"text": 6, "digits": 7, "rosenbrock": 8}[task]
    for run in result.runs:
        assert run["status"] == "finished", run["reason"]
        assert run["checks"][0]["step"] == 0
        assert run["checks"][-1]["step"] == 4
        assert len(run["losses"]) == len(run["step_seconds"]) == 4
    for each in result.data["results"]:
        assert each["final"]["step"] == 4
        assert each["name"] in result.output


def test_spaces_do_not_change_adam(compare):
    """Ours in every space ends where torch's own does; what differs is the second order."""
    result = compare("digits", "--steps", "10")
    torch_run, *ours, lbfgs, newton = result.data["results"]
    for run in ours:
        assert run["final"]["loss"] == pytest.approx(torch_run["final"]["loss"], rel=1e-4)
    for run in (lbfgs, newton):
        assert run["final"]["loss"] != pytest.approx(torch_run["final"]["loss"], rel=1e-4)


def test_every_preset_learns(compare):
    presets = [name for name in PRESETS if name != "tiles-muon"]
    result = compare("rosenbrock", *presets, "--steps", "5", "--lr", "0.001")
    runs = {run["name"]: run for run in result.data["results"]}
    assert list(runs) == presets
    for run in runs.values():
        assert run["final"]["loss"] < run["checks"][0]["loss"], run
        assert run["lr"] in (0.001, None)


def test_presets_in_other_spaces_train_the_text(compare, story):
    presets = {"tiles-muon": 0.003, "haar-adam": 0.003, "fourier-lbfgs": None}
    usual = ("torch-adam", "vector-lbfgs")
    result = compare("text", *usual, *presets, "--steps", "12", "--text", str(story))
    adam, lbfgs, *runs = result.data["results"]
    assert {run["name"]: run["lr"] for run in runs} == presets
    for run in runs:
        assert run["final"]["loss"] < 0.8 * run["checks"][0]["loss"], run
        for other in (adam, lbfgs):  # the space changes something
            assert run["checks"][2]["loss"] != pytest.approx(other["checks"][2]["loss"], rel=1e-3)
    tiles, haar, fourier = runs
    assert tiles["state_bytes"] < 0.6 * haar["state_bytes"]  # momentum alone, for matrices
    assert fourier["state_bytes"] < 0.26 * lbfgs["state_bytes"]  # a quarter of the frequencies


def test_tiles_are_what_muon_sees(story):
    task = Text(0, story)
    plan = contender("tiles-muon", task.lr).optimizer(task.model()).describe()
    assert plan.count("\n0/0/modules/0") == 1
    assert " 116 x 32 x 32\n" in plan  # the tiles of all matrices, in one batch


def test_tiles_need_a_matrix(compare):
    result = compare("rosenbrock", "tiles-muon", "--steps", "5")
    assert result.code == 1
    assert "'ndim>=2'" in result.output


def test_a_spec_is_built_and_shown_as_given(compare):
    spec = "vector([adam()]); lr(0.02)"
    result = compare("rosenbrock", spec, "--steps", "3")
    (run,) = result.data["results"]
    assert (run["spec"], run["lr"]) == (spec, 0.02)
    assert result.output.count("vector([adam()])") == 2  # when it is finished, and in the table


def test_json_holds_settings_versions_and_numbers_only(compare):
    result = compare("digits", "torch-adamw", "--steps", "3", "--seed", "7", "--threads", "1")
    data = result.data
    assert data["settings"] == {
        "steps": 3,
        "schedule": "constant",
        "seed": 7,
        "seeds": 1,
        "threads": 1,
        "lr": None,
        "tune": 0,
    }
    assert {"python", "torch", "projcore", "projcore-lab"} <= set(data["versions"])
    assert data["task"]["parameters"] == 16 * 10 + 32 * 145 + 10 * 513
    (each,), (run,) = data["results"], result.runs
    assert 0 < each["final"]["accuracy"] <= 1
    assert run["evaluations"] == run["backwards"] == each["evaluations"] == 3
    assert each["seconds"] == pytest.approx(sum(run["step_seconds"]))
    assert str(result.folder.parent) not in json.dumps(data)


def test_the_picture_shows_something(compare):
    result = compare("rosenbrock", *PAIR, "--steps", "5")
    assert str(result.picture) in result.output.replace("\n", "")
    picture = imread(result.picture)
    assert picture.shape[0] > 800
    assert picture.shape[1] > 1000
    assert len({tuple(pixel) for row in picture[::3, ::3] for pixel in row}) > 50


@pytest.mark.parametrize("task", ["text", "digits"])
def test_the_same_seed_gives_the_same_losses(compare, story, task):
    options = ["--text", str(story)] if task == "text" else []

    def losses(seed: str) -> list[float]:
        result = compare(task, *PAIR, "--steps", "3", "--seed", seed, *options)
        return [loss for run in result.runs for loss in run["losses"]]

    assert losses("1") == losses("1")
    assert losses("1") != losses("2")


def test_all_start_with_the_same_weights_and_batch(compare):
    one, other = compare("digits", *PAIR, "--steps", "2").runs
    assert one["checks"][0]["loss"] == other["checks"][0]["loss"]
    assert one["losses"][0] == other["losses"][0]
    assert one["losses"][1] != other["losses"][1]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("no_such_module(); lr(1)", "no_such_module"),
        ("adam(", "adam("),
        ("adam(bets=1)", "betas"),
    ],
)
def test_a_wrong_spec_is_refused_before_any_training(compare, monkeypatch, spec, word):
    monkeypatch.setattr(FunctionTask, "loss", lambda *_: pytest.fail("trained"))
    result = compare("rosenbrock", "torch-adam", spec)
    assert result.code == 1
    assert word in result.output.replace("\n", " ")
    assert not result.folder.exists()


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT, which a process started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_keeps_what_is_finished(compare, monkeypatch, interruptible):
    batches = []

    def batch(self, step):
        batches.append(step)
        if len(batches) == 15:
            signal.raise_signal(signal.SIGINT)
        return ()

    monkeypatch.setattr(FunctionTask, "batch", batch)
    result = compare("rosenbrock", *PAIR, "vector-lbfgs", "--steps", "8")
    assert result.code == 130
    assert [run["key"]["spec"] for run in result.runs] == ["torch.optim.Adam(lr=0.1)"]
    assert [each["name"] for each in result.data["results"]] == ["torch-adam"]
    assert result.data["missing"] == ["torch-adamw", "vector-lbfgs"]
    assert result.picture.stat().st_size > 10_000
    assert result.output.splitlines()[1:] == [
        f"Interrupted. Finished runs are kept in {result.folder}; "
        "the same command with --resume continues from there."
    ]


def test_an_interruption_before_anything_is_finished(compare, monkeypatch):
    calls = []

    def batch(self, step):
        calls.append(step)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(FunctionTask, "batch", batch)
    result = compare("rosenbrock", "torch-adam", "--steps", "8")
    assert result.code == 130
    assert result.runs == []
    assert not result.picture.exists()


def losses(result) -> dict[str, list[float]]:
    """The seeds' final losses of each optimizer."""
    return {each["name"]: each["final_losses"] for each in result.data["results"]}


def test_a_comparison_goes_on_where_it_was_interrupted(compare, monkeypatch, interruptible):
    arguments = ("low_noise", *PAIR, "--steps", "6", "--seeds", "2", "--tune", "2")
    whole = compare(*arguments)
    batch = FunctionTask.batch
    steps = []

    def counting(self, step):
        steps.append(step)
        if len(steps) == 50:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step)

    monkeypatch.setattr(FunctionTask, "batch", counting)
    part = compare(*arguments)
    assert part.code == 130
    kept = part.runs
    assert 0 < len(kept) < len(whole.runs)
    rest = compare(*arguments, "--resume", folder=part.folder)
    assert rest.code == 0
    assert rest.runs[: len(kept)] == kept
    assert losses(rest) == losses(whole)
    steps.clear()
    assert losses(compare(*arguments, "--resume", folder=part.folder)) == losses(whole)
    assert len(steps) < 6  # those that warm up, and no run


def test_more_seeds_and_other_optimizers_use_the_runs_that_are_there(compare):
    first = compare("low_noise", "torch-adam", "--steps", "5")
    options = ("--steps", "5", "--seeds", "2", "--resume")
    before = first.runs
    more = compare("low_noise", "torch-adam", "adam(); lr(1)", *options, folder=first.folder)
    assert more.runs[:1] == before
    assert [run["seed"] for run in more.runs] == [0, 1, 0, 1]
    compare("low_noise", "torch-adam", "--steps", "6", "--resume", folder=first.folder)
    assert [len(run["losses"]) for run in more.runs] == [5, 5, 5, 5, 6]


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("runs.jsonl", (), "Pass --resume to continue from its runs, or name another folder"),
        ("compare.json", (), "Name another folder"),
        ("compare.pdf", ("--resume",), "Name another folder"),
    ],
)
def test_results_are_not_overwritten(compare, tmp_path, name, options, advice):
    file = tmp_path / "there" / name
    file.parent.mkdir()
    file.write_text("dear to me", "utf-8")
    result = compare("rosenbrock", "torch-adam", "--steps", "2", *options, folder=file.parent)
    assert result.code == 1
    assert f"has results already: {name}" in result.output
    assert advice in result.output
    assert file.read_text("utf-8") == "dear to me"
    assert [each.name for each in file.parent.iterdir()] == [name]


def test_several_seeds_and_a_target(compare):
    options = ("--seeds", "3", "--steps", "20", "--target", "16")
    result = compare("low_noise", "torch-adam", "adam(); lr(1e-6)", *options)
    adam, still = result.data["results"]
    target = result.data["target"]
    finals = [run["checks"][-1]["loss"] for run in result.runs[:3]]
    assert adam["final_losses"] == finals
    assert adam["spread"] == pytest.approx(statistics.stdev(finals))
    assert target["freedom"] == 2
    assert still["steps_to_target"] is None
    means = {check["step"]: check["loss"] for check in adam["checks"]}
    passed = [step for step in means if (16 - means[step]) * 3**0.5 >= target["constant"] > 0]
    assert adam["steps_to_target"] == passed[0]
    assert f"(target - mean) sqrt(3) >= {target['constant']:.3g}" in " ".join(result.output.split())


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("text", "digits")])
def test_every_task_is_trained_by_torch_and_by_ours(compare, task):
    result = compare(task, "torch-adam", "plain-adam", "--steps", "3", "--lr", "1e-3")
    one, other = result.data["results"]
    assert one["final"]["loss"] < one["checks"][0]["loss"]
    assert other["final"]["loss"] == pytest.approx(one["final"]["loss"], rel=1e-5)


def test_the_command_offers_every_function():
    assert set(FUNCTIONS) <= set(TASKS)


def test_torch_classes_by_name(compare):
    result = compare("beale", "torch.optim.SGD(lr=0.001, momentum=0.9)", "--steps", "5")
    (each,) = result.data["results"]
    assert each["lr"] == 0.001
    for spec, word in (
        ("torch.optim.Sgd(lr=1)", "has no"),
        ("torch.optim.SGD(1)", "takes keyword arguments"),
        ("torch.optim.SGD(lr=-1)", "Invalid learning rate"),
        ("torch.optim.SGD(rate=1)", "unexpected keyword"),
    ):
        refused = compare("beale", spec)
        assert refused.code == 1
        assert word in refused.output


def test_the_table_has_a_legend(compare):
    result = compare("digits", "torch-adam", "--steps", "2", "--seeds", "2", "--target", "1")
    for name, text in LEGEND.items():
        assert any(line.split("  ")[0] == name for line in result.output.splitlines()), name
        assert text in result.output


def test_divergence_is_a_result(compare):
    result = compare("rosenbrock", "adam(); lr(1e160)", "torch-adam", "--steps", "20")
    diverged, other = result.data["results"]
    assert result.code == 0
    assert diverged["status"] == "diverged"
    assert diverged["final"] is None
    assert other["status"] == "finished"
    assert "lr(1e160): diverged" in result.output
    assert result.picture.exists()


def test_an_error_of_one_contender_does_not_cost_the_others(compare, monkeypatch):
    def step(self, closure=None):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(torch.optim.Adam, "step", step)  # torch's AdamW inherits it
    result = compare("rosenbrock", "torch-adam", "adam(); lr(0.1)", "--steps", "3")
    assert result.code == 1
    assert [run["status"] for run in result.data["results"]] == ["failed", "finished"]
    assert "out of luck" in result.output


def test_tune_finds_a_learning_rate_and_shows_it(compare):
    result = compare("rosenbrock", "torch-adam", "--tune", "3", "--steps", "50", "--lr", "0.001")
    (each,) = result.data["results"]
    assert [trial["lr"] for trial in each["trials"]] == [0.001, 0.00316, 0.00999]
    assert each["lr"] == min(each["trials"], key=lambda trial: trial["loss"])["lr"] == 0.00999
    assert "0.00999*" in result.output
    assert "at the edge of those tried" in result.output
    assert imread(result.folder / "rates.png").shape[0] > 500


def test_rates_are_tried_on_a_seed_of_their_own_in_whole_runs(compare):
    options = ("--tune", "2", "--steps", "5", "--seed", "7", "--seeds", "2")
    result = compare("low_noise", "torch-adam", *options)
    assert [run["seed"] for run in result.runs] == [6, 6, 7, 8]
    assert {len(run["losses"]) for run in result.runs} == {5}


def test_tune_survives_divergence_and_leaves_alone_what_has_no_learning_rate(compare):
    names = ("torch-adam", "vector-lbfgs")
    result = compare("rosenbrock", *names, "--tune", "4", "--steps", "10", "--lr", "1e77")
    adam, lbfgs = result.data["results"]
    assert [trial["loss"] is None for trial in adam["trials"]] == [True, True, False, False]
    assert [trial["lr"] for trial in adam["trials"]] == [1e77, 3.16e76, 9.99e75, 3.16e75]
    assert lbfgs["trials"] == []
    assert lbfgs["status"] == "finished"


def test_evaluations_are_counted(compare):
    result = compare("rosenbrock", "vector-lbfgs", "torch-adam", "--steps", "30")
    lbfgs, adam = result.runs
    assert adam["evaluations"] == 30
    assert lbfgs["evaluations"] > 30
    assert lbfgs["backwards"] <= lbfgs["evaluations"]
    assert lbfgs["checks"][-1]["evaluations"] == lbfgs["evaluations"]


def test_specs_may_stand_before_and_after_options(compare):
    for arguments in (["--steps", "1", "adam(); lr(1)"], ["adam(); lr(1)", "--steps", "1"]):
        (run,) = compare("rosenbrock", *arguments).data["results"]
        assert (run["spec"], run["final"]["step"]) == ("adam(); lr(1)", 1)


def test_bad_options_are_refused(compare, tmp_path, story):
    for options in (["--steps", "0"], ["--lr", "nan"], ["--threads", "-1"], ["--target", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            compare("rosenbrock", *options)
    assert compare("text", "--text", str(tmp_path / "missing.txt")).code == 1
    for options in (("--text", str(story)), ("--size", "large"), ("--batch", "8")):
        refused = compare("digits", *options)
        assert refused.code == 1
        assert "Only the task 'text' takes one" in refused.output
    story.write_text("short")
    result = compare("text", "--text", str(story))
    assert result.code == 1
    assert "--text" in result.output


def test_threads_are_restored(compare):
    before = torch.get_num_threads()
    compare("rosenbrock", "torch-adam", "--steps", "1", "--threads", str(before + 1))
    assert torch.get_num_threads() == before


def test_the_hook_module_does_not_import_torch():
    code = "import sys, projcore_lab._plugin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
