"""What a user sees of ``projcore plan``, and that it comes true to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import projcore
from projcore import registry
from projcore.cli import main
from projcore.plugin import hookimpl
from projcore_lab._plugin import PLAN_EPILOG
from projcore_lab.llama import LLAMA
from projcore_lab.memory import state_bytes
from projcore_lab.plan import make, parameters

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = {"embedding.weight": (40, 16), "0.weight": (24, 16), "0.bias": (24,), "scale": ()}
SPECS = [
    "adam(); lr(0.01)",
    "vector([clip_norm(1.0), adamw()]); lr(0.01)",
    "route({'*bias': adam(), 'ndim>=2': muon(), '*': heavy_ball()}); lr(0.01)",
    "haar([adam()], keep=0.5); lr(0.01)",
    "hadamard([adam()], signs=3); lr(0.01)",
    "to([adam(), lr(0.01)], 'float32', master=True)",
    "scalar([adam()]); lr(0.01)",
    "adafactor()",
    "vector([lbfgs(history_size=4), strong_wolfe()])",
    "lr(0.1)",
]
MiB = 2**20


@pytest.fixture
def plan(capsys):
    """Runs the command; returns its exit code and its output."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["plan", *arguments])
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def data(plan):
    """Runs the command; returns its JSON."""

    def run(*arguments: str):
        code, output = plan(*arguments, "--json")
        assert code == 0, output
        return json.loads(output)

    return run


@pytest.fixture
def model(tmp_path):
    """A file with the shapes of a small model."""
    file = tmp_path / "model.json"
    file.write_text(json.dumps(SHAPES), "utf-8")
    return str(file)


def train(spec: str, dtype: torch.dtype, steps: int) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(0)
    params = {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }
    optimizer = projcore.Optimizer(params.items(), spec)

    def closure(backward: bool = True):
        optimizer.zero_grad()
        loss = torch.stack([(p - 1).square().sum() for p in params.values()]).sum()
        if backward:
            loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_plan_comes_true(data, model, spec, dtype):
    if dtype == "bfloat16" and "wolfe" in spec:
        spec = f"to([{spec}], 'float32', master=True)"
    (entry,) = data(model, spec, "--dtype", dtype)["optimizers"]
    assert entry["spec"] == spec
    assert entry["notes"] == []
    assert entry["state_bytes"] == sum(row["bytes"] for row in entry["rows"])
    for steps in (1, 7):
        optimizer = train(spec, getattr(torch, dtype), steps)
        assert entry["state_bytes"] == state_bytes(optimizer) == optimizer.memory().state
    assert (entry["state_bytes"] > 0) == (spec != "lr(0.1)")


# Of LLaMA 7B the number of parameters is published; the others follow by hand from the sizes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-60m", 58_073_600),
        ("llama-130m", 134_105_856),
        ("llama-350m", 367_969_280),
        ("llama-1b", 1_339_082_752),
        ("llama-7b", 6_738_415_616),
    ],
)
def test_the_sizes_of_llama(data, name, count):
    found = data(name, "lr(0.1)", "--dtype", "bfloat16")
    assert found["parameters"] == count
    assert found["weight_bytes"] == found["gradient_bytes"] == 2 * count
    assert found["adamw_bytes"] == 4 * count
    assert found["tensors"] == 9 * LLAMA[name].layers + 3


def test_every_model_is_told_of_in_the_help():
    assert all(name in PLAN_EPILOG for name in LLAMA)


def test_rows_tell_who_keeps_what(data):
    spec = "route({'*_proj.weight': haar([adam()], keep=0.5), '*': adam()}); lr(0.01)"
    (entry,) = data("llama-60m", spec)["optimizers"]
    rows = {(row["path"], row["entry"]): row for row in entry["rows"]}
    inside = rows["0/0/modules/0", "exp_avg"]
    llama = LLAMA["llama-60m"]
    blocks = llama.layers * (4 * llama.hidden**2 + 3 * llama.hidden * llama.intermediate)
    assert inside["tensors"] == 7 * llama.layers
    assert inside["bytes"] == 4 * blocks / 4  # half of each side
    assert rows["0/1", "exp_avg_sq"]["bytes"] == 4 * (58_073_600 - blocks)
    share = 1 - 0.75 * blocks / 58_073_600
    assert entry["of_adamw"] == pytest.approx(share, rel=1e-5)  # and counts


def test_the_table(plan):
    code, output = plan("llama-130m", "adam(); lr(0.1)", "heavy_ball()", "--dtype", "bfloat16")
    assert code == 0
    lines = [line.split() for line in output.splitlines()]
    weights = 2 * 134_105_856 / MiB
    assert "llama-130m: 134,105,856 parameters in 111 tensors, bfloat16" in output
    assert f"weights {weights:.2f} MiB, gradients {weights:.2f} MiB" in output
    assert ["adam();", "lr(0.1)", "state", "333", f"{2 * weights:.2f}", "100.0%"] in lines
    assert ["0", "adam()", "exp_avg", "111", f"{weights:.2f}", "50.0%"] in lines
    assert ["0", "adam()", "step", "111", "<0.01", "0.0%"] in lines
    (sum_line,) = [line for line in lines if line[:2] == ["heavy_ball()", "state"]]
    assert sum_line[-2:] == [f"{weights:.2f}", "50.0%"]


def test_a_spec_in_brackets_is_shown_as_given(plan, model):
    _, output = plan(model, "vector([adam(), clip_norm(1.0)])", "--dtype", "float64")
    assert "vector([adam(), clip_norm(1.0)])" in output


def test_options_may_stand_anywhere(data, model):
    first = data("--dtype", "float16", model, "adam()", "lion()", "adam()")
    assert first == data(model, "--dtype", "float16", "adam()", "lion()")
    assert [entry["spec"] for entry in first["optimizers"]] == ["adam()", "lion()"]


def test_a_model_without_numbers_has_no_share(plan, tmp_path):
    file = tmp_path / "empty.json"
    file.write_text('{"w": [0, 3]}', "utf-8")
    code, output = plan(str(file), "heavy_ball(0.9)")
    assert code == 0
    assert "–" in output


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is not valid JSON"),
        ("[[2, 3]]", "must map the names"),
        ("{}", "non-empty object"),
        ('{"w": 3}', "has 3 for 'w'"),
        ('{"w": [2, -1]}', "has [2, -1] for 'w'"),
        ('{"w": [2.0]}', "has [2.0] for 'w'"),
        ('{"w": [true]}', "has [True] for 'w'"),
    ],
)
def test_a_wrong_file_is_refused(plan, tmp_path, text, word):
    file = tmp_path / "wrong.json"
    file.write_text(text, "utf-8")
    code, output = plan(str(file), "adam()")
    assert code == 1
    assert word in output


def test_an_unknown_model_is_refused(plan, tmp_path):
    code, output = plan("lama-7b", "adam()")
    assert code == 1
    assert "Did you mean 'llama-7b'?" in output
    file = tmp_path / "weights.bin"
    file.write_bytes(b"\xff\xfe\x00")
    assert plan(str(file), "adam()")[0] == plan(str(tmp_path), "adam()")[0] == 1


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("no_such_module()", "no_such_module"),
        ("adam(bets=1)", "betas"),
        ("adam(", "adam("),
        ("route({'no_such_name': adam(), '*': lr(0.1)})", "no_such_name"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_printed(plan, model, spec, word):
    code, output = plan(model, "adam()", spec)
    assert code == 1
    assert output.startswith(f"projcore: {spec!r} cannot be built: ")
    assert word in output
    assert "weights" not in output


def halved(params, keep=0.5, betas=(0.9, 0.999)):
    """A recipe."""
    named = dict(params)
    assert all(param.is_meta for param in named.values())
    inside = projcore.build({"haar": {"modules": [{"adam": {"betas": betas}}], "keep": keep}})
    return projcore.Optimizer(named.items(), inside, "lr(0.1)")


def torchs(params):
    """A recipe that makes none of ours."""
    return torch.optim.SGD([param for _, param in params], lr=0.1)


def reading(params):
    """A recipe that reads values."""
    return projcore.Optimizer(params, f"scale({float(next(iter(params))[1].sum())})")


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.setitem(sys.modules, "plan_test", sys.modules[__name__])  # a name without "-"

    @hookimpl
    def projcore_register_recipes(register):
        for name in ("halved", "torchs", "reading"):
            register(name, f"plan_test:{name}", summary="Tests.", aliases=(f"{name}_alias",))
        register("adam", "plan_test:halved", summary="Has the name of a module.")

    hooks = SimpleNamespace(projcore_register_recipes=projcore_register_recipes, PROJCORE_API=1)
    registry.register_plugin(hooks, "plan_test")
    yield
    registry.unregister_plugin("plan_test")


@pytest.mark.usefixtures("recipes")
def test_recipes_are_called_on_the_parameters(data, model):
    calls = [
        "halved",
        "halved()",
        "plan_test:halved(keep=0.5)",
        " halved_alias( betas=(0.5, 0.9) )",
    ]
    written_out = "haar([adam()], keep=0.5)"
    *entries, expected = data(model, *calls, written_out, "--dtype", "float64")["optimizers"]
    assert {entry["state_bytes"] for entry in entries} == {expected["state_bytes"]}
    (entry,) = data(model, "halved(keep=0.25)")["optimizers"]
    assert entry["state_bytes"] < expected["state_bytes"]


@pytest.mark.usefixtures("recipes")
def test_arguments_reach_the_recipe():
    optimizer = make("halved(betas=(0.5, 0.9))", parameters(SHAPES, "float32"))
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert optimizer.param_groups[0]["param_names"] == list(SHAPES)


@pytest.mark.usefixtures("recipes")
def test_a_module_goes_before_a_recipe_of_its_name(data, model):
    (entry,) = data(model, "adam()")["optimizers"]
    assert {row["path"] for row in entry["rows"]} == {"0"}
    (entry,) = data(model, "plan_test:adam()")["optimizers"]
    assert {row["path"] for row in entry["rows"]} == {"0/modules/0"}


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("halved(0.5)", ["takes arguments by name"]),
        ("halved(**{'keep': 1})", ["halved"]),
        ("halved(); lr(0.1)", ["cannot be combined with others"]),
        ("halved()(keep=0.5)", ["halved"]),
        ("halved(keep=adam())", ["takes arguments by name"]),
        ("halved(keep=)", ["Write halved(name=value, ...)."]),
        ("halved(keeps=0.5)", ["keeps", "It takes the parameters and keep, betas."]),
        ("halved(keep=-1)", ["keep"]),
        ("torchs()", ["makes a SGD"]),
        ("reading()", ["cannot be planned", "memory()"]),
    ],
)
def test_a_wrong_recipe_is_refused(plan, model, spec, words):
    code, output = plan(model, spec)
    assert code == 1, output
    for word in (spec, *words):
        assert word in output


def test_the_help_imports_nothing_heavy():
    code = (
        "import sys; from projcore.cli import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'rich', 'projcore_lab.plan', 'projcore_lab.llama'} & {*sys.modules})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "llama-60m" in output.stdout
    assert output.stdout.endswith("set()\n"), output


def test_sharding_on_paper(plan, data, model):
    found = data(model, "muon_adamw()", "adamw(); lr(1e-3)", "--ranks", "4")
    muon, adamw = found["optimizers"]
    whole = data(model, "muon_adamw()")["optimizers"][0]["state_bytes"]
    assert whole / 4 <= muon["rank_state_bytes"] < whole
    assert muon["rank_sent_bytes"] > 0 == adamw["rank_sent_bytes"]
    _, text = plan(model, "muon_adamw()", "--ranks", "4")
    assert "each of 4 processes" in text
    assert "sends in a step" in text


def test_what_cannot_be_sharded_is_refused(plan, model):
    code, output = plan(model, "vector([clip_norm(1.0)]); lr(0.1)", "--ranks", "4")
    assert code == 1
    assert "cannot be sharded (--ranks): vector([clip_norm(1.0)]) needs all full" in output
    with pytest.raises(SystemExit):
        plan(model, "adam()", "--ranks", "0")
