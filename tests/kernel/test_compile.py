"""compile=True: runs of nodes in one graph each, compiled once, equal to eager."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, ProjectionBase, Transform, common
from projcore.engine.compiler import COMPILED
from projcore.modules import (
    LBFGS,
    LR,
    Adam,
    Backtracking,
    ClipNorm,
    ClipValue,
    HeavyBall,
    PolyakAveraging,
    Route,
    Sign,
    WeightDecay,
)
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]


class Counting:
    """A backend of torch.compile that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def backend(monkeypatch: Any) -> Iterator[Counting]:
    """Compiles with a backend that counts, and fails at a break of the graph."""
    counting, compiler = Counting(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(compiler, backend=counting, fullgraph=True))
    yield counting
    torch._dynamo.reset()


@pytest.fixture
def lenient(monkeypatch: Any) -> Iterator[None]:
    """Compiles with torch's simplest backend; what it cannot trace runs as it is."""
    compiler = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(compiler, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=2):
        yield
    torch._dynamo.reset()


CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam in a vector": lambda: [VectorProjection([Adam(), LR(0.1)])],
    "bare": lambda: [ClipValue(0.5), WeightDecay(0.01), HeavyBall(0.9), LR(0.1)],
    "bare adam": lambda: [Adam(), LR(0.1)],
    "clipped": lambda: [VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1)],
    "scalars": lambda: [ScalarProjection([Adam(), ClipNorm(0.5)]), Sign(), LR(0.1)],
    "to": lambda: [To([VectorProjection([ClipNorm(1.0), HeavyBall(0.9)])], "float64"), LR(0.1)],
    "master": lambda: [To([Adam(), LR(0.1)], "float64", master=True)],
}


def close(one: Optimizer, other: Optimizer) -> None:
    for mine, theirs in zip(params_of(one), params_of(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert one.state[mine].keys() == other.state[theirs].keys()
        for key, value in one.state[mine].items():
            torch.testing.assert_close(value, other.state[theirs][key], rtol=1e-6, atol=1e-6)


def params_of(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def pair(chain: str, make: Any, groups: int = 1) -> list[Optimizer]:
    """The same optimizer twice, compiled and eager."""
    result = []
    for compiled in (True, False):
        params = make((3, 2), (4,), (), dtype=torch.float32)
        given = [{"params": params[i::groups]} for i in range(groups)]
        result.append(Optimizer(given, *CHAINS[chain](), compile=compiled))
    return result


@pytest.mark.parametrize("chain", CHAINS)
def test_one_graph_compiled_once(chain: str, make: Any, run: Any, backend: Counting) -> None:
    """A scheduler changes the learning rate and the momentum at each step."""
    compiled, eager = pair(chain, make)
    for optimizer in (compiled, eager):
        cyclic = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=12, cycle_momentum=cyclic
        )
        for step in range(10):
            run(optimizer, range(step, step + 1))
            schedule.step()
    assert len(backend.graphs) == 1
    close(compiled, eager)


class Breaking(Transform):
    """Cannot be traced."""

    scope = "element"

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        torch._dynamo.graph_break()
        return tensors


def test_a_break_of_the_graph_is_seen(make: Any, run: Any, backend: Counting) -> None:
    optimizer = Optimizer(make(), Breaking(), LR(0.1), compile=True)
    run(optimizer, range(1))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run(optimizer, range(1, 2))


@pytest.mark.parametrize("chain", ["adam in a vector", "clipped", "scalars"])
def test_groups(chain: str, make: Any, run: Any, backend: Counting) -> None:
    compiled, eager = pair(chain, make, groups=2)
    for optimizer in (compiled, eager):
        for step in range(6):
            optimizer.param_groups[1]["lr"] = 0.01 * step
            run(optimizer, range(step, step + 1))
    assert len(backend.graphs) == 1
    close(compiled, eager)


class Wide(Transform):
    """Works on all tensors at once, with a setting of any kind."""

    scope = "all"

    def __init__(self, value: Any) -> None:
        super().__init__({"value": value})

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        common(self, facts[4])
        return list(tensors)


@pytest.mark.parametrize(
    "value",
    [(0.5, 0.25), (1, 2), [0.5], 1000, "text", True, None, 0.5, torch.tensor(0.5)],
    ids=repr,
)
def test_equal_settings_of_two_groups(value: Any, make: Any, run: Any, backend: Counting) -> None:
    groups = [{"params": [param], "value": deepcopy(value)} for param in make((2,), (3,))]
    chain = [Wide(deepcopy(value)), LR(0.1)]
    optimizer = Optimizer(groups, *chain, compile=True)
    run(optimizer, range(3))
    assert len(backend.graphs) == 1


def test_groups_that_disagree_are_refused_as_in_eager(make: Any, run: Any, lenient: None) -> None:
    compiled, eager = pair("clipped", make, groups=2)
    for optimizer in (compiled, eager):
        run(optimizer, range(2))
        optimizer.param_groups[1]["max_norm"] = 3.0
        with pytest.raises(ValueError, match=r"groups disagree: max_norm is .*1\.0?.* and .*3\.0?"):
            optimizer.step()
        optimizer.param_groups[0]["max_norm"] = 3.0
        run(optimizer, range(2, 4))
    close(compiled, eager)


def test_a_learning_rate_that_is_a_tensor(make: Any, run: Any, backend: Counting) -> None:
    results = []
    for compiled in (True, False):
        rate = torch.tensor(0.1)
        params = make((3,), (2, 2), dtype=torch.float32)
        optimizer = Optimizer(params, VectorProjection([Adam()]), LR(rate), compile=compiled)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(6):
            run(optimizer, range(step, step + 1))
            schedule.step()
        assert isinstance(optimizer.param_groups[0]["lr"], Tensor)
        results.append(optimizer)
    assert len(backend.graphs) == 1
    close(*results)


@pytest.mark.parametrize("chain", ["adam in a vector", "clipped"])
def test_after_loading(chain: str, make: Any, run: Any, backend: Counting) -> None:
    compiled, eager = pair(chain, make)
    run(compiled, range(4))
    saved = compiled.state_dict()
    other = pair(chain, make)[0]
    with torch.no_grad():
        for mine, theirs in zip(params_of(other), params_of(compiled), strict=True):
            mine.copy_(theirs)
    other.load_state_dict(saved)
    run(other, range(4, 8))
    run(eager, range(8))
    close(other, eager)
    assert saved["state"][0]["0/modules/1/step" if chain == "clipped" else "0/modules/0/step"] == 4


def test_missing_gradients_and_late_groups(make: Any, run: Any, backend: Counting) -> None:
    compiled, eager = pair("clipped", make)
    for optimizer in (compiled, eager):
        run(optimizer, range(5), lambda step: {0, 1, 2} if step % 3 else {0, 2})
        optimizer.add_param_group({"params": make((2, 5), dtype=torch.float32), "lr": 0.01})
        run(optimizer, range(5, 8))
    close(compiled, eager)


def test_many_sets_of_gradients(make: Any, run: Any, backend: Counting) -> None:
    """Of ten plans, each of which runs three times, eight are compiled."""
    sets = list(combinations(range(5), 2))
    compiled, eager = pair("bare", make)
    for optimizer in (compiled, eager):
        optimizer.add_param_group({"params": make((2,), (2,), dtype=torch.float32)})
        run(optimizer, range(30), lambda step: sets[step % 10])
    close(compiled, eager)
    assert len(backend.graphs) == COMPILED


def test_a_step_without_any_gradient(make: Any, run: Any, backend: Counting) -> None:
    compiled, eager = pair("adam in a vector", make)
    for optimizer in (compiled, eager):
        run(optimizer, range(6), lambda step: {0, 1, 2} if step != 3 else set())
    close(compiled, eager)
    assert len(backend.graphs) == 1


def closure_of(params: list[Parameter]) -> Callable[..., Tensor]:
    def closure(backward: bool = True) -> Tensor:
        loss = torch.stack([(p - i - 1).pow(4).sum() for i, p in enumerate(params)]).sum()
        if backward:
            for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
                param.grad = grad
        return loss

    return closure


def test_a_new_closure_at_each_step(make: Any, backend: Counting) -> None:
    """Modules that do not call it are compiled once for all closures."""
    compiled, eager = pair("adam in a vector", make)
    for optimizer in (compiled, eager):
        for _ in range(12):
            optimizer.step(closure_of(params_of(optimizer)))
    assert len(backend.graphs) == 1
    close(compiled, eager)


@pytest.mark.parametrize(
    ("chain", "graphs"),
    [
        (lambda: [VectorProjection([LBFGS(), Backtracking()])], 0),
        (lambda: [ClipValue(10.0), VectorProjection([Backtracking(0.1)]), HeavyBall(0.5)], 2),
        (lambda: [ViewAsReal([Adam(), Backtracking()]), ClipNorm(0.1), LR(0.5)], 2),
        (lambda: [To([Adam(), Backtracking()], "float64", master=True)], 1),
    ],
)
def test_line_searches_run_in_python(chain: Any, graphs: int, make: Any, backend: Counting) -> None:
    """Their loops depend on what they find; what is before and behind them is compiled."""
    results = []
    for compiled in (True, False):
        optimizer = Optimizer(make((3, 2), (4,), dtype=torch.float32), *chain(), compile=compiled)
        for _ in range(6):
            optimizer.step(closure_of(params_of(optimizer)))
        results.append(optimizer)
        assert ("in Python (it evaluates the loss)" in optimizer.describe()) == compiled
    close(*results)
    assert len(backend.graphs) == graphs


class EverySecond(Transform):
    """Passes every second update, which it finds out in Python."""

    traceable = False

    def init(self, tensor: torch.Tensor, settings: Any) -> dict[str, Any]:
        return {"step": torch.zeros((), dtype=torch.int64)}

    def apply(self, tensors, params, grads, loss, states, settings):
        for state in states:
            state["step"] += 1
        return tensors if states[0]["step"] % 2 else [torch.zeros_like(t) for t in tensors]


def test_what_is_not_traceable_runs_in_python(make: Any, run: Any, backend: Counting) -> None:
    results = []
    for compiled in (True, False):
        params = make((3, 2), (4,), dtype=torch.float32)
        chain = [HeavyBall(0.9), VectorProjection([Wide(0.5), EverySecond(), Adam()]), LR(0.1)]
        optimizer = Optimizer(params, *chain, compile=compiled)
        run(optimizer, range(6))
        results.append(optimizer)
    close(*results)
    assert len(backend.graphs) == 3
    assert nodes_of(results[0]) == [
        "compiled",
        "  run heavy_ball",
        "run vector in Python (not all that it runs inside is traced)",
        "  compiled",
        "    run wide",
        "  run everysecond in Python (it declares traceable = False)",
        "compiled",
        "  run adam",
        "  run lr",
        "  write the update",
    ]


def nodes_of(optimizer: Optimizer) -> list[str]:
    head, *lines = optimizer.describe().split("\n\n")[2].splitlines()
    assert head == "Steps run compiled:"
    return [line.removeprefix("  ") for line in lines]


class Turn(ProjectionBase):
    """Swaps the rows of matrices, in another way every third step, which it finds out in Python."""

    kinds = {"order": "fixed", "step": "scalar"}
    scope = "tensor"

    def __init__(self, modules: Any, on_refresh: Any = "transport") -> None:
        self.on_refresh = on_refresh
        super().__init__(modules)

    def applies(self, tensor: Tensor, settings: Any) -> bool:
        return tensor.ndim >= 2

    def init(self, tensor: Tensor, settings: Any) -> dict[str, Any]:
        return {"step": 0, "order": torch.arange(tensor.shape[0])}

    def refresh(self, states: list[Any]) -> list[Any] | None:  # type: ignore[override]
        due = states[0]["step"] % 3 == 0
        for state in states:
            state["step"] += 1
        return [{"order": state["order"].roll(1)} for state in states] if due else None

    def project(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [x[state["order"]] for x, state in zip(tensors, facts[3], strict=True)]

    def unproject(self, projected_tensors: Any, *facts: Any) -> list[Tensor]:
        pairs = zip(projected_tensors, facts[3], strict=True)
        return [x[state["order"].argsort()] for x, state in pairs]


TURNED: dict[str, tuple[Callable[[], list[Any]], int]] = {
    "alone": (lambda: [Turn([Adam()])], 1),
    "behind another": (lambda: [HeavyBall(0.9), Turn([Adam()]), WeightDecay(0.1), LR(0.1)], 2),
    "nested": (lambda: [Turn([HeavyBall(0.9), Turn([Adam()]), LR(0.5)]), LR(0.1)], 2),
    "in a vector": (lambda: [ToMatrix([Turn([Adam()])]), LR(0.1)], 1),
    "reset": (lambda: [Turn([Adam()], on_refresh="reset"), LR(0.1)], 1),
    "with another inside": (lambda: [Turn([VectorProjection([ClipNorm(1.0), Adam()])])], 1),
}


class ToMatrix(ProjectionBase):
    """Makes one matrix of all tensors, of rows of two elements."""

    geometry = "layout"

    def project(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [torch.cat([tensor.reshape(-1) for tensor in tensors]).view(-1, 2)]

    def unproject(self, projected_tensors: Any, params: list[Tensor], *facts: Any) -> list[Tensor]:
        (flat,) = projected_tensors
        parts = flat.reshape(-1).split([param.numel() for param in params])
        return [part.view(param.shape) for part, param in zip(parts, params, strict=True)]


@pytest.mark.parametrize("name", TURNED)
def test_a_refresh_runs_in_python(name: str, make: Any, run: Any, backend: Counting) -> None:
    """And so what it decides by counts and settings, for which nothing is compiled again."""
    chain, graphs = TURNED[name]
    results = []
    for compiled in (True, False):
        params = make((3, 2), (4,), (2, 2), dtype=torch.float32)
        optimizer = Optimizer(params, *chain(), compile=compiled)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        for step in range(20):
            run(optimizer, range(step, step + 1))
            schedule.step()
        results.append(optimizer)
    close(*results)
    assert len(backend.graphs) == graphs


class Drawn(Turn):
    """Changes signs at random, by numbers that it draws when it needs them."""

    def signs(self, tensor: Tensor, state: Any) -> Tensor:
        if "signs" in state:
            return state["signs"]
        generator = torch.Generator().manual_seed(state["step"] // 3)
        return (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor.device)

    def materialize(self, tensors: list[Tensor], states: Any, settings: Any) -> list[Any]:
        pairs = zip(tensors, states, strict=True)
        return [{"signs": self.signs(tensor, state)} for tensor, state in pairs]

    def project(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [self.signs(x, state) * x for x, state in zip(tensors, facts[3], strict=True)]

    def unproject(self, projected_tensors: Any, *facts: Any) -> list[Tensor]:
        return self.project(projected_tensors, *facts)


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
def test_what_no_graph_can_make(policy: Any, make: Any, run: Any, backend: Counting) -> None:
    """It is made in Python before the graph, and not kept."""
    results = []
    for compiled in (True, False):
        params = make((3, 2), (4,), (2, 2), dtype=torch.float32)
        optimizer = Optimizer(params, Drawn([Adam()], policy), LR(0.1), compile=compiled)
        run(optimizer, range(10))
        results.append(optimizer)
    close(*results)
    assert len(backend.graphs) == 1
    assert nodes_of(results[0])[:3] == [
        "begin drawn on 0, 2 in Python",
        "compiled",
        "  run drawn on 0, 2",
    ]


def test_refreshes_of_other_tensors_come_first(make: Any, run: Any, backend: Counting) -> None:
    """So projections that stand side by side are in one graph."""
    params = make((3, 2), (1, 4, 3), (4,), dtype=torch.float32)
    route = Route({"ndim==2": [Turn([Adam()])], "ndim==3": [Turn([Sign()])], "*": [Adam()]})
    optimizer = Optimizer(params, route, LR(0.1), compile=True)
    run(optimizer, range(8))
    assert len(backend.graphs) == 1
    assert nodes_of(optimizer)[:3] == [
        "begin turn on 0 in Python",
        "begin turn on 1 in Python",
        "compiled",
    ]


def test_observers_look_in_python(make: Any, run: Any, backend: Counting) -> None:
    results = []
    for compiled in (True, False):
        params = make((3, 2), (4,), dtype=torch.float32)
        chain = [ClipNorm(1.0), Adam(), LR(0.1), PolyakAveraging()]
        optimizer = Optimizer(params, *chain, compile=compiled)
        run(optimizer, range(6))
        results.append(optimizer)
    close(*results)
    assert len(backend.graphs) == 1
    assert "observe polyak_averaging in Python (it looks at the parameters)" in nodes_of(results[0])


def test_affine_modules_alone_are_not_compiled(make: Any, run: Any, backend: Counting) -> None:
    """They are numbers by which the update is subtracted."""
    chain = [VectorProjection([EverySecond()]), WeightDecay(0.1), LR(0.1)]
    optimizer = Optimizer(make(), *chain, compile=True)
    run(optimizer, range(4))
    assert not backend.graphs
    assert nodes_of(optimizer)[-1] == "write the update; folded: weight_decay, lr"


def test_options_are_those_of_torch(make: Any, run: Any) -> None:
    torch._dynamo.reset()
    counting = Counting()
    options = {"backend": counting, "fullgraph": True}
    optimizer = Optimizer(make(), *CHAINS["clipped"](), compile=options)
    run(optimizer, range(3))
    assert len(counting.graphs) == 1
    options["backend"] = None
    assert optimizer.compile == {"backend": counting, "fullgraph": True}
    torch._dynamo.reset()


def test_it_may_be_set_later(make: Any, run: Any, backend: Counting) -> None:
    """As on what a recipe returns, with or without state."""
    eager, other = pair("bare adam", make)[1], pair("bare adam", make)[1]
    run(eager, range(9))
    run(other, range(3))
    other.compile = True
    run(other, range(3, 6))
    assert len(backend.graphs) == 1
    other.compile = False
    run(other, range(6, 9))
    close(other, eager)
    assert len(backend.graphs) == 1


@pytest.mark.parametrize("part", [{"bucket_bytes": 100}, {"in_backward": True}])
def test_it_may_not_be_set_where_steps_are_taken_in_parts(part: Any, make: Any) -> None:
    optimizer = Optimizer(make(), *CHAINS["bare adam"](), **part)
    with pytest.raises(ValueError, match=f"compile=True.*{min(part)} takes some at a time"):
        optimizer.compile = True
    assert not optimizer.compile
    with pytest.raises(ValueError, match=f"{min(part)}=.*Leave out one"):
        Optimizer(make(), *CHAINS["bare adam"](), compile=True, **part)


def test_options_are_kept_by_copies(make: Any, run: Any) -> None:
    optimizer = Optimizer(make(), *CHAINS["clipped"](), compile={"backend": "eager"})
    run(optimizer, range(2))
    other = pickle.loads(pickle.dumps(optimizer))
    assert other.compile == {"backend": "eager"}
    run(other, range(2, 4))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("max-autotune", TypeError, r"compile='max-autotune'\) was given a str\. It must be"),
        (None, TypeError, "was given a NoneType"),
        (1, TypeError, "was given a int"),
        ({"backend": "nonsense"}, ValueError, "'nonsense'.*which rejects them"),
        ({"modus": "default"}, ValueError, "modus"),
        ({"mode": "fastest"}, ValueError, "fastest"),
    ],
)
def test_bad_options(given: Any, error: type[Exception], text: str, make: Any) -> None:
    with pytest.raises(error, match=f"(?s){text}"):
        Optimizer(make(), *CHAINS["bare adam"](), compile=given)


def test_it_says_once_that_it_compiles(
    make: Any, run: Any, backend: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="projcore")
    chain = [ClipNorm(1.0), VectorProjection([EverySecond()]), Adam(), LR(0.1)]
    optimizer = Optimizer(make(), *chain, compile=True)
    run(optimizer, range(1))
    assert not caplog.messages
    run(optimizer, range(1, 4))
    assert len(backend.graphs) == 2
    (message,) = caplog.messages
    assert "torch.compile" in message


def test_resuming_in_the_other_mode(make: Any, run: Any, backend: Counting) -> None:
    """What one saves, the other loads."""
    eager = pair("clipped", make)[1]
    run(eager, range(9))
    first, other = pair("clipped", make)
    run(first, range(3))
    for step in (3, 6):
        with torch.no_grad():
            for mine, theirs in zip(params_of(other), params_of(first), strict=True):
                mine.copy_(theirs)
        other.load_state_dict(first.state_dict())
        run(other, range(step, step + 3))
        first, other = other, first
    close(first, eager)


class Fails(Transform):
    """Raises when it is told to, in Python or in a trace."""

    scope = "element"
    now = False

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.traceable = traceable

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        if self.now:
            raise ValueError("on purpose")
        return tensors


@pytest.mark.parametrize("traceable", [False, True])
def test_a_step_that_fails_writes_no_parameter(
    traceable: bool, make: Any, run: Any, feed: Any, snapshot: Any, lenient: None
) -> None:
    fails = Fails(traceable)
    optimizer = Optimizer(make(), ClipNorm(1.0), fails, Adam(), LR(0.1), compile=True)
    run(optimizer, range(3))
    feed(params_of(optimizer), 3)
    before = snapshot(optimizer)
    fails.now = True
    with pytest.raises((ValueError, torch._dynamo.exc.TorchDynamoException)):
        optimizer.step()
    assert all(map(torch.equal, params_of(optimizer), before["params"]))
    fails.now = False
    optimizer.step()
    assert not any(map(torch.equal, params_of(optimizer), before["params"]))


def test_copies_compile_for_themselves(make: Any, run: Any, backend: Counting) -> None:
    compiled, eager = pair("adam in a vector", make)
    for optimizer in (compiled, eager):
        run(optimizer, range(3))
    other = deepcopy(compiled)
    assert other.compile
    for optimizer in (other, eager):
        run(optimizer, range(3, 6))
    close(other, eager)


def test_a_user_compiles_the_step(make: Any, feed: Any, lenient: None) -> None:
    results = []
    for compiled in (True, False):
        params = make((3, 2), (4,))
        optimizer = Optimizer(params, *CHAINS["clipped"]())
        take = torch.compile(optimizer.step) if compiled else optimizer.step
        for step in range(4):
            feed(params, step)
            take()
        results.append(params)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_nothing_of_a_step_that_a_user_compiles_is_traced(make: Any, feed: Any) -> None:
    """Whatever it is made of: only ``compile=True`` says that the modules are to be compiled."""
    torch._dynamo.reset()
    counting = Counting()
    results = []
    for compiled in (True, False):
        params = make((8, 6), (6, 10), (5,), (7, 8))
        optimizer = Optimizer(params, "low_rank([adam()], rank=2, combine='fira')", "lr(0.1)")

        def train(optimizer: Optimizer = optimizer) -> None:
            optimizer.step()

        take = torch.compile(train, backend=counting) if compiled else train
        for step in range(4):
            feed(params, step)
            take()
        results.append(params)
    torch._dynamo.reset()
    assert not counting.graphs
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_with_inductor(make: Any, run: Any) -> None:
    """With torch's own compiler, forty steps on, the schedule included."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, eager = pair("adam in a vector", make)
    for optimizer in (compiled, eager):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        for step in range(40):
            run(optimizer, range(step, step + 1))
            schedule.step()
    close(compiled, eager)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch._dynamo.reset()
