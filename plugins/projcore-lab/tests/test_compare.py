"""What a user sees of ``projcore compare``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from matplotlib.image import imread

from projcore_lab.lineup import PRESETS, TORCH_PRESETS, contender
from projcore_lab.rosenbrock import Rosenbrock
from projcore_lab.text import Text

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("error")]

PAIR = ("torch-adam", "torch-adamw")


@pytest.mark.parametrize("task", ["text", "digits", "rosenbrock"])
def test_the_default_lineup_of_every_task(compare, story, task):
    options = ["--text", str(story)] if task == "text" else []
    result = compare(task, "--steps", "4", *options)
    assert result.code == 0, result.output
    assert len(result.data["runs"]) == {"text": 6, "digits": 7, "rosenbrock": 8}[task]
    for run in result.data["runs"]:
        assert run["status"] == "finished", run["reason"]
        assert run["final"]["step"] == 4
        assert run["checks"][0]["step"] == 0
        assert len(run["losses"]) == len(run["step_seconds"]) == 4
        assert run["name"] in result.output


def test_spaces_do_not_change_adam(compare):
    """Ours in every space ends where torch's own does; what differs is the second order."""
    result = compare("digits", "--steps", "10")
    torch_run, *ours, lbfgs, newton = result.data["runs"]
    for run in ours:
        assert run["final"]["loss"] == pytest.approx(torch_run["final"]["loss"], rel=1e-4)
    for run in (lbfgs, newton):
        assert run["final"]["loss"] != pytest.approx(torch_run["final"]["loss"], rel=1e-4)


def test_every_preset_learns(compare):
    presets = [*TORCH_PRESETS, *(name for name in PRESETS if name != "tiles-muon")]
    result = compare("rosenbrock", *presets, "--steps", "5", "--lr", "0.001")
    runs = {run["name"]: run for run in result.data["runs"]}
    assert list(runs) == presets
    for run in runs.values():
        assert run["final"]["loss"] < run["checks"][0]["loss"], run
        assert run["lr"] in (0.001, None)


def test_presets_in_other_spaces_train_the_text(compare, story):
    presets = {"tiles-muon": 0.003, "haar-adam": 0.003, "fourier-lbfgs": None}
    usual = ("torch-adam", "vector-lbfgs")
    result = compare("text", *usual, *presets, "--steps", "12", "--text", str(story))
    adam, lbfgs, *runs = result.data["runs"]
    assert {run["name"]: run["lr"] for run in runs} == presets
    for run in runs:
        assert run["final"]["loss"] < 0.8 * run["checks"][0]["loss"], run
        for other in (adam, lbfgs):  # the space changes something
            assert run["losses"][2] != pytest.approx(other["losses"][2], rel=1e-3)
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
    (run,) = result.data["runs"]
    assert (run["spec"], run["lr"]) == (spec, 0.02)
    assert result.output.count("vector([adam()])") == 2  # when it is finished, and in the table


def test_json_holds_settings_versions_and_numbers_only(compare):
    result = compare("digits", "torch-adamw", "--steps", "3", "--seed", "7", "--threads", "1")
    data = result.data
    assert data["settings"] == {"steps": 3, "seed": 7, "threads": 1, "lr": None, "tune": False}
    assert {"python", "torch", "projcore", "projcore-lab"} <= set(data["versions"])
    assert data["task"]["parameters"] == 16 * 10 + 32 * 145 + 10 * 513
    (run,) = data["runs"]
    assert 0 < run["final"]["accuracy"] <= 1
    assert run["evaluations"] == run["backwards"] == 3
    assert run["seconds"] == pytest.approx(sum(run["step_seconds"]))
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
        return [loss for run in result.data["runs"] for loss in run["losses"]]

    assert losses("1") == losses("1")
    assert losses("1") != losses("2")


def test_all_start_with_the_same_weights_and_batch(compare):
    one, other = compare("digits", *PAIR, "--steps", "2").data["runs"]
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
    monkeypatch.setattr(Rosenbrock, "loss", lambda *_: pytest.fail("trained"))
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

    monkeypatch.setattr(Rosenbrock, "batch", batch)
    result = compare("rosenbrock", *PAIR, "vector-lbfgs", "--steps", "8")
    assert result.code == 130
    assert [run["name"] for run in result.data["runs"]] == ["torch-adam"]
    assert result.data["missing"] == ["torch-adamw", "vector-lbfgs"]
    assert result.picture.stat().st_size > 10_000
    assert "not finished: torch-adamw, vector-lbfgs" in result.output


def test_an_interruption_before_anything_is_finished(compare, monkeypatch):
    calls = []

    def batch(self, step):
        calls.append(step)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(Rosenbrock, "batch", batch)
    result = compare("rosenbrock", "torch-adam", "--steps", "8")
    assert result.code == 130
    assert result.data["runs"] == []
    assert not result.picture.exists()


def test_divergence_is_a_result(compare):
    result = compare("rosenbrock", "adam(); lr(1e160)", "torch-adam", "--steps", "20")
    diverged, other = result.data["runs"]
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
    assert [run["status"] for run in result.data["runs"]] == ["failed", "finished"]
    assert "out of luck" in result.output


def test_tune_finds_a_learning_rate_and_shows_it(compare):
    result = compare("rosenbrock", "torch-adam", "--tune", "--steps", "50", "--lr", "0.001")
    (run,) = result.data["runs"]
    assert [trial["lr"] for trial in run["trials"]] == [0.0001, 0.0003, 0.001, 0.003, 0.01]
    best = min(run["trials"], key=lambda trial: trial["loss"])
    assert run["lr"] == best["lr"] == 0.01
    assert "0.01*" in result.output
    assert "edge of the grid" in result.output


def test_tune_survives_divergence_and_leaves_alone_what_has_no_learning_rate(compare):
    names = ("torch-adam", "vector-lbfgs")
    result = compare("rosenbrock", *names, "--tune", "--steps", "10", "--lr", "1e77")
    adam, lbfgs = result.data["runs"]
    assert [trial["loss"] is None for trial in adam["trials"]] == [False, False, True, True, True]
    assert lbfgs["trials"] == []
    assert lbfgs["status"] == "finished"


def test_evaluations_are_counted(compare):
    result = compare("rosenbrock", "vector-lbfgs", "torch-adam", "--steps", "30")
    lbfgs, adam = result.data["runs"]
    assert adam["evaluations"] == 30
    assert lbfgs["evaluations"] > 30
    assert lbfgs["backwards"] <= lbfgs["evaluations"]
    assert lbfgs["checks"][-1]["evaluations"] == lbfgs["evaluations"]


def test_specs_may_stand_before_and_after_options(compare):
    for arguments in (["--steps", "1", "adam(); lr(1)"], ["adam(); lr(1)", "--steps", "1"]):
        (run,) = compare("rosenbrock", *arguments).data["runs"]
        assert (run["spec"], run["final"]["step"]) == ("adam(); lr(1)", 1)


def test_bad_options_are_refused(compare, tmp_path, story):
    for options in (["--steps", "0"], ["--lr", "nan"], ["--threads", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            compare("rosenbrock", *options)
    assert compare("text", "--text", str(tmp_path / "missing.txt")).code == 1
    assert compare("digits", "--text", str(story)).code == 1
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
