"""Plans: whatever changes between steps, a step is what it is without a pass, or as torch has it.

Blocks are small here, so that the few parameters that there are make several.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Blend, Entries, Optimizer, ProjectionBase, Settings, Transform, Write, Writer
from projcore.engine.commit import Store
from projcore.engine.passes import split as splitting
from projcore.engine.plan import PASSES
from projcore.errors import ArgumentError
from projcore.modules import (
    LR,
    Adam,
    AdamW,
    BiasCorrection,
    ClipNorm,
    HeavyBall,
    Normalize,
    PolyakAveraging,
    Route,
    Scale,
    WeightDecay,
)
from projcore.projections import IntrinsicSubspace, LowRank, To, VectorProjection

SHAPES = [(4, 3), (5,), (2, 3), (), (7,)]
MINE, NONE = PASSES, frozenset[str]()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "BLOCK", 8)


def parameters(shapes: Sequence[tuple[int, ...]] = tuple(SHAPES)) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def give(params: Sequence[Tensor], step: int, missing: Sequence[int] = ()) -> None:
    for i, param in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = None if i in missing else grad


class Counted(Transform):
    """Multiplies by a number that depends on how often it was asked; affine."""

    scope = "element"

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        return {"count": 0}

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        for state in states:
            state["count"] += 1
        return [(1 / state["count"], 0.1) for state in states]

    def apply(self, tensors: list[Tensor], params: Any, *rest: Any) -> list[Tensor]:
        pairs = self.coefficients(rest[2], rest[3])
        return [a * u + b * p for (a, b), u, p in zip(pairs, tensors, params, strict=True)]

    needs = frozenset({"params"})


class Sized(Transform):
    """Multiplies by a number that each tensor has of its own; affine."""

    scope = "element"

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        return {"size": 1 + tensor.numel()}

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(1 / state["size"], 0.0) for state in states]

    def apply(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        return [tensor / state["size"] for tensor, state in zip(tensors, rest[3], strict=True)]


class Replaced(Transform):
    """Replaces its memory, where others write into it."""

    scope = "element"
    kinds = {"total": "first"}

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        return {"total": torch.zeros_like(tensor)}

    def apply(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        states = rest[3]
        for state, tensor in zip(states, tensors, strict=True):
            state["total"] = state["total"] + tensor
        return [state["total"] for state in states]


class Steps(Transform):
    """Multiplies by how many steps there were; also by writing parameters itself."""

    scope = "element"

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        return {"steps": torch.zeros(())}

    def apply(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        steps = torch._foreach_add([state["steps"] for state in rest[3]], 1)
        for state, count in zip(rest[3], steps, strict=True):
            state["steps"] = count
        return [tensor * count for tensor, count in zip(tensors, steps, strict=True)]

    def writer(self, targets: list[Tensor]) -> Writer:
        return StepsWriter()


class StepsWriter(Writer):
    """Keeps the tensors of the state that it finds in its first call, as it may."""

    kernel = "a product"

    def __init__(self) -> None:
        self.counts: list[Tensor] = []

    def __call__(  # type: ignore[override]
        self, targets: list[Tensor], blends: list[Blend], tensors: list[Tensor], *rest: Any
    ) -> list[Write]:
        self.counts = self.counts or [state["steps"] for state in rest[3]]

        def run() -> None:
            torch._foreach_add_(self.counts, 1)
            for target, (scale, decay), tensor, count in zip(
                targets, blends, tensors, self.counts, strict=True
            ):
                target.mul_(1 - decay).sub_(tensor * count, alpha=scale)

        return [Write(targets[0], run)]


class Turned(ProjectionBase):
    """Puts elements into the other order; what it makes are no views."""

    scope = "tensor"
    geometry = "pointwise"

    def project(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return [tensor.reshape(-1).flip(0).reshape(tensor.shape) for tensor in tensors]

    def unproject(self, projected_tensors: Any, *_: Any) -> list[Tensor]:
        return self.project(list(projected_tensors))


class Flat(Turned):
    """Makes vectors, which are views."""

    def project(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return [tensor.reshape(-1) for tensor in tensors]

    def unproject(self, projected_tensors: Any, params: list[Tensor], *_: Any) -> list[Tensor]:
        pairs = zip(projected_tensors, params, strict=True)
        return [tensor.reshape(param.shape) for tensor, param in pairs]


class Residual(Flat):
    """Adds some of what comes in; it might write, but does not."""

    def combine(  # type: ignore[override]
        self, tensors: list[Tensor], projected: Any, result: Any, params: list[Tensor], *_: Any
    ) -> list[Tensor]:
        full = self.unproject(result, params)
        return [each + 0.1 * tensor for each, tensor in zip(full, tensors, strict=True)]

    def writer(self, targets: list[Tensor]) -> str:
        return "it needs the whole update"


CHAINS: dict[str, Callable[[], list[Any]]] = {
    "residual": lambda: [Residual([Adam()]), WeightDecay(0.3), LR(0.1)],
    "turned": lambda: [Turned([Adam(), LR(0.1)])],
    "adam, sized": lambda: [Adam(), Sized(), LR(0.1)],
    "own writer": lambda: [Steps(), WeightDecay(0.3), LR(0.1)],
    "adam, counted": lambda: [Adam(), Counted(), LR(0.1)],
    "views": lambda: [
        Flat([Adam(), WeightDecay(0.3), Scale(0.5)], project_params=True),
        WeightDecay(0.2),
        LR(0.1),
    ],
    "adam": lambda: [Adam(), LR(0.1)],
    "adam, decay": lambda: [Adam(), WeightDecay(0.3), LR(0.1)],
    "adamw": lambda: [AdamW(weight_decay=0.3), LR(0.1)],
    "amsgrad": lambda: [Adam(amsgrad=True), Scale(0.5), LR(0.1)],
    "decay, momentum": lambda: [WeightDecay(0.3), HeavyBall(0.9), LR(0.1)],
    "clip, adam": lambda: [ClipNorm(1.0), Adam(), WeightDecay(0.3), LR(0.1)],
    "clip, momentum": lambda: [ClipNorm(1.0), HeavyBall(0.9), WeightDecay(0.1), LR(0.1)],
    "clip alone": lambda: [ClipNorm(1.0), WeightDecay(0.3), LR(0.1)],
    "clip each": lambda: [ClipNorm(1.0, per_tensor=True), Adam(), LR(0.1)],
    "clip last": lambda: [Adam(), ClipNorm(1.0), WeightDecay(0.3), LR(0.1)],
    "adam in the middle": lambda: [Adam(), HeavyBall(0.9), WeightDecay(0.3), LR(0.1)],
    "correction": lambda: [Adam(bias_correction=False), BiasCorrection(), LR(0.1)],
    "counted": lambda: [HeavyBall(0.9), Counted(), WeightDecay(0.3), LR(0.1)],
    "counted alone": lambda: [ClipNorm(1.0), Counted(), LR(0.1)],
    "clip, adam, counted": lambda: [ClipNorm(1.0), Adam(), Counted(), LR(0.1)],
    "replaced": lambda: [Replaced(), WeightDecay(0.3), LR(0.1)],
    "average": lambda: [Adam(), LR(0.1), PolyakAveraging(0.5)],
    "routed": lambda: [
        Route({"ndim==2": [Adam(), WeightDecay(0.3)], "*": [ClipNorm(1.0), HeavyBall(0.9)]}),
        LR(0.1),
    ],
    "routed, fewer": lambda: [Route({"ndim==2": [Adam()], "*": None}), WeightDecay(0.3), LR(0.1)],
    "rate": lambda: [Adam(), WeightDecay(0.3)],
    "master": lambda: [To([Adam(), WeightDecay(0.3), LR(0.1)], "float32", master=True)],
    "low rank": lambda: [LowRank([Adam()], rank=2, period=2), WeightDecay(0.3), LR(0.1)],
}
HOISTED: dict[str, Callable[[], list[Any]]] = {
    "merged": lambda: [VectorProjection([HeavyBall(0.9), Normalize()]), WeightDecay(0.3), LR(0.1)],
    "elementwise in a vector": lambda: [VectorProjection([Adam(), WeightDecay(0.3)]), LR(0.1)],
    "some in a vector": lambda: [
        VectorProjection([HeavyBall(0.9), Normalize(), Adam(), WeightDecay(0.3)]),
        LR(0.1),
    ],
    "clip in a vector": lambda: [VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1)],
    "clip each in a vector": lambda: [
        VectorProjection([ClipNorm(1.0, per_tensor=True), Adam()]),
        LR(0.1),
    ],
}


def nothing(optimizer: Optimizer, step: int) -> None:
    give(all_of(optimizer), step)


def in_turns(optimizer: Optimizer, step: int) -> None:
    give(all_of(optimizer), step, [step % 5, (step + 2) % 5])


def once_missing(optimizer: Optimizer, step: int) -> None:
    give(all_of(optimizer), step, [1] if step == 3 else [])


def scheduled(optimizer: Optimizer, step: int) -> None:
    nothing(optimizer, step)
    for i, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.1 / (step + 1 + i)
        if "weight_decay" in group:
            group["weight_decay"] = 0.05 * step
        if "betas" in group:
            group["betas"] = (0.5 + 0.05 * step, 0.9)


def cleared(optimizer: Optimizer, step: int) -> None:
    nothing(optimizer, step)
    if step == 3:
        optimizer.state.clear()


def replaced(optimizer: Optimizer, step: int) -> None:
    nothing(optimizer, step)
    if step == 3:
        for entries in optimizer.state.values():
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.ndim:
                    entries[key] = value + 1 if value.numel() else value


def removed(optimizer: Optimizer, step: int) -> None:
    """Of one parameter, the state is gone."""
    nothing(optimizer, step)
    if step == 3:
        optimizer.state.pop(all_of(optimizer)[1], None)


def reloaded(optimizer: Optimizer, step: int) -> None:
    nothing(optimizer, step)
    if step == 3:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def loaded_of_before(optimizer: Optimizer, step: int) -> None:
    nothing(optimizer, step)
    if step == 2:
        optimizer.kept = copy.deepcopy(optimizer.state_dict())
    if step == 4:
        optimizer.load_state_dict(optimizer.kept)


def group_added(optimizer: Optimizer, step: int) -> None:
    if step == 3:
        generator = torch.Generator().manual_seed(9)
        more = [Parameter(torch.randn(s, generator=generator).double()) for s in [(3, 4), (6,)]]
        optimizer.add_param_group({"params": more, "lr": 0.02})
    nothing(optimizer, step)


def frozen(optimizer: Optimizer, step: int) -> None:
    params = all_of(optimizer)
    params[0].requires_grad_(step not in (2, 3))
    give(params, step, [0] if step in (2, 3) else [])


def counted_apart(optimizer: Optimizer, step: int) -> None:
    """Somebody sets the counts of one parameter back."""
    nothing(optimizer, step)
    if step == 3:
        for key, value in optimizer.state.get(all_of(optimizer)[0], {}).items():
            if key.endswith("step") and isinstance(value, Tensor):
                value.fill_(0)


def swapped(optimizer: Optimizer, step: int) -> None:
    """The memory of the parameters is another."""
    nothing(optimizer, step)
    if step == 3:
        for param in all_of(optimizer):
            param.data = param.detach().clone()


SCENES: dict[str, Callable[[Optimizer, int], None]] = {
    scene.__name__: scene
    for scene in (
        nothing,
        in_turns,
        once_missing,
        scheduled,
        cleared,
        replaced,
        removed,
        reloaded,
        loaded_of_before,
        group_added,
        frozen,
        counted_apart,
        swapped,
    )
}


def all_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def trained(
    chain: Callable[[], list[Any]], scene: Callable[[Optimizer, int], None], passes: frozenset[str]
) -> Optimizer:
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
    optimizer = Optimizer(groups, *chain())
    optimizer._use_passes(passes)
    for step in range(6):
        scene(optimizer, step)
        optimizer.step()
    return optimizer


def same(
    one: Optimizer, other: Optimizer, state: bool = True, rtol: float = 1e-11, atol: float = 1e-12
) -> None:
    for mine, theirs in zip(all_of(one), all_of(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
        if not state:
            continue
        ours, other_ones = one.state.get(mine, {}), other.state.get(theirs, {})
        assert ours.keys() == other_ones.keys()
        for key, value in ours.items():
            torch.testing.assert_close(
                torch.as_tensor(value), torch.as_tensor(other_ones[key]), rtol=rtol, atol=atol
            )


@pytest.mark.pairwise
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("chain", CHAINS)
def test_whatever_changes_between_steps(chain: str, scene: str) -> None:
    optimizers = [trained(CHAINS[chain], SCENES[scene], passes) for passes in (MINE, NONE)]
    single = {"rtol": 1e-5, "atol": 1e-6} if chain == "master" else {}
    same(*optimizers, **single)


@pytest.mark.parametrize("scene", ["nothing", "scheduled", "cleared", "reloaded"])
@pytest.mark.parametrize("chain", HOISTED)
def test_whatever_changes_where_modules_run_outside(chain: str, scene: str) -> None:
    optimizers = [trained(HOISTED[chain], SCENES[scene], passes) for passes in (MINE, NONE)]
    same(*optimizers, state=False)


REFERENCES: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
    "adam": (lambda: [Adam(), WeightDecay(0.3), LR(0.1)], {}),
    "clip, adam": (lambda: [ClipNorm(1.0), AdamW(weight_decay=0.3), LR(0.1)], {"max_norm": 1.0}),
    "vector": (lambda: [VectorProjection([AdamW(weight_decay=0.3)]), LR(0.1)], {}),
}


@pytest.mark.parametrize("passes", [MINE, NONE], ids=["passes", "none"])
@pytest.mark.parametrize(
    "scene", [nothing, in_turns, scheduled, cleared, replaced, removed, counted_apart, swapped]
)
@pytest.mark.parametrize("chain", REFERENCES)
def test_it_is_torchs_step(chain: str, scene: Any, passes: frozenset[str]) -> None:
    modules, options = REFERENCES[chain]
    if chain == "vector" and not passes and scene in (in_turns, removed, counted_apart, replaced):
        pytest.skip("one vector has one memory")
    if chain == "vector" and scene is scheduled:
        pytest.skip("its groups share betas and decay only outside")
    ours = trained(modules, scene, passes)
    params = parameters()
    groups: Any = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
    theirs: Any = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)
    for step in range(6):
        scene(theirs, step)
        if options:
            torch.nn.utils.clip_grad_norm_(params, **options)
        theirs.step()
    for one, other in zip(all_of(ours), params, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


class Whole(Adam):
    """Divides by the norm of all of the update."""

    scope = "all"

    def apply(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:  # type: ignore[override]
        made = super().apply(tensors, *rest)
        norm = torch.stack([each.norm() for each in made]).norm()
        return [each / norm for each in made]


def test_what_is_made_of_all_tensors_is_not_written_by_a_kernel() -> None:
    optimizers = [trained(lambda: [Whole(), Scale(0.1)], nothing, each) for each in (MINE, NONE)]
    same(*optimizers)


def test_routes_in_routes_are_of_their_tensors() -> None:
    def nested() -> list[Any]:
        inner = Route({"numel==12": [HeavyBall(0.5)], "*": [HeavyBall(0.9)]})
        return [Route({"numel<7": [Scale(2.0)], "*": [Scale(1.0), inner]}), Scale(0.1)]

    ours = all_of(trained(nested, nothing, MINE))
    expected = parameters()
    for i, param in enumerate(expected):
        momentum = 0.5 if i == 0 else 0.9
        options = {"lr": 0.1, "momentum": momentum} if i in (0, 4) else {"lr": 0.2}
        rate = 1.0 if i < 2 else 0.05  # of the group: a factor on the step
        sgd = torch.optim.SGD([param], **{**options, "lr": options["lr"] * rate})
        for step in range(6):
            give(expected, step)
            sgd.step()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_what_looks_at_parameters_is_refused_deep_inside_a_linear_projection() -> None:
    inner = To([ClipNorm(1.0), PolyakAveraging(0.5)], "float64")
    with pytest.raises(ArgumentError, match="LowRank was given"):
        Optimizer(parameters(), LowRank([inner], rank=2), LR(0.1))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: BaseException) -> None:
    """Has the call of that number of an operation of torch raise, before it does anything."""
    real, calls = getattr(torch, name), [0]

    def once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, name, once)


def kept(optimizer: Optimizer) -> list[Any]:
    """A copy of parameters and state."""
    return [
        (param.detach().clone(), copy.deepcopy(optimizer.state.get(param, {})))
        for param in all_of(optimizer)
    ]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(p, q)
        and a.keys() == b.keys()
        and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
        for (p, a), (q, b) in zip(one, other, strict=True)
    )


def test_state_is_saved_behind_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = trained(CHAINS["replaced"], nothing, MINE)
    before = kept(optimizer)
    give(all_of(optimizer), 6)
    with monkeypatch.context() as patch:
        failing(patch, "_foreach_sub_", 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert equal(kept(optimizer), before)
    optimizer.step()  # and goes on as if it had not been tried
    twin = trained(CHAINS["replaced"], nothing, MINE)
    give(all_of(twin), 6)
    twin.step()
    assert equal(kept(optimizer), kept(twin))


@pytest.mark.parametrize("chain", ["adam", "clip, adam", "own writer", "replaced", "counted"])
@pytest.mark.parametrize("at", [2, 3])
def test_a_write_that_fails_in_the_middle_is_made_good(
    chain: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, twin = (trained(CHAINS[chain], nothing, MINE) for _ in range(2))
    for each in (optimizer, twin):
        give(all_of(each), 6)
    twin.step()
    name = "_fused_adamw_" if "adam" in chain else "_foreach_sub_"
    before = kept(optimizer)
    with monkeypatch.context() as patch:
        failing(patch, name, at, RuntimeError("once"))
        with suppress(RuntimeError):
            optimizer.step()
    assert equal(kept(optimizer), kept(twin)) or equal(kept(optimizer), before)


@pytest.mark.parametrize("chain", ["counted alone", "clip, adam, counted"])
def test_what_counts_is_not_asked_again(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, twin = (trained(CHAINS[chain], nothing, MINE) for _ in range(2))
    for each in (optimizer, twin):
        give(all_of(each), 6)
    before = kept(optimizer)
    twin.step()
    real, calls = Counted.coefficients, [0]

    def interrupted(self: Any, states: Any, settings: Any) -> Any:
        pairs = real(self, states, settings)
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return pairs

    monkeypatch.setattr(Counted, "coefficients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert equal(kept(optimizer), before) or equal(kept(optimizer), kept(twin))


def test_what_moves_moments_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of tensors with gaps move when the update is made, so all are made before a write."""

    def after_three_steps() -> Optimizer:
        params = [Parameter(param.detach().t()) for param in parameters([(3, 4)] * 3)]
        optimizer = Optimizer(params, *CHAINS["clip, adam"]())
        for step in range(3):
            give(params, step)
            optimizer.step()
        give(params, 3)
        return optimizer

    optimizer, twin = after_three_steps(), after_three_steps()
    before = [param.detach().clone() for param in all_of(optimizer)]
    twin.step()
    failing(monkeypatch, "_foreach_div", 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    now = [param.detach() for param in all_of(optimizer)]
    assert any(all(map(torch.equal, now, each)) for each in (before, all_of(twin)))


def test_what_has_looked_does_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, twin = (trained(CHAINS["average"], nothing, MINE) for _ in range(2))
    for each in (optimizer, twin):
        give(all_of(each), 6)
    twin.step()
    real, calls = PolyakAveraging.observe, [0]

    def interrupted(self: Any, *args: Any) -> None:
        real(self, *args)
        calls[0] += 1
        if calls[0] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(PolyakAveraging, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert equal(kept(optimizer), kept(twin))


def test_state_is_saved_where_it_was_replaced_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, saved = Store.save, [0]

    def save(self: Store) -> None:
        saved[0] += 1
        real(self)

    monkeypatch.setattr(Store, "save", save)
    for chain, often in (("adam", False), ("own writer", False), ("replaced", True)):
        optimizer = trained(CHAINS[chain], nothing, MINE)
        saved[0] = 0
        give(all_of(optimizer), 6)
        optimizer.step()
        assert saved[0] == often


@pytest.mark.parametrize("passes", [MINE, NONE], ids=["passes", "none"])
@pytest.mark.parametrize("last", [[], [Normalize()]], ids=["last", "in the middle"])
def test_what_was_replaced_is_in_the_state_after_each_step(
    last: list[Any], passes: frozenset[str]
) -> None:
    params = parameters()
    optimizer = Optimizer(params, Replaced(), *last, Counted(), LR(0.1))
    optimizer._use_passes(passes)
    total = [torch.zeros_like(param) for param in params]
    for step in range(4):
        give(params, step)
        optimizer.step()
        for each, param in zip(total, params, strict=True):
            each += param.grad
            assert torch.equal(optimizer.state[param]["0/total"], each)
            assert optimizer.state[param][f"{1 + len(last)}/count"] == step + 1


def test_loading_tells_who_takes_part() -> None:
    def build(frozen: bool) -> Optimizer:
        params = parameters()
        params[0].requires_grad_(not frozen)
        return Optimizer(params, Adam(), LR(0.1))

    one, other = build(True), build(False)
    for step in range(3):
        for each in (one, other):
            give(all_of(each), step, [0] if each is one else [])
            each.step()
    all_of(other)[0].requires_grad_(False)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(all_of(other), all_of(one), strict=True):
            mine.copy_(theirs)
    for step in range(3, 5):
        for each in (one, other):
            give(all_of(each), step, [0])
            each.step()
    assert equal(kept(one), kept(other))


def test_settings_of_what_is_merged_must_agree() -> None:
    params = parameters()
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = Optimizer(groups, VectorProjection([ClipNorm(1.0, per_tensor=True)]), LR(0.1))
    optimizer.param_groups[1]["max_norm"] = 2.0
    give(params, 0)
    with pytest.raises(ArgumentError, match="Give all of them the same max_norm"):
        optimizer.step()


def test_what_passes_has_state_from_the_first_step_on() -> None:
    params = parameters()
    optimizer = Optimizer(params, LowRank([Adam()], rank=2, period=2), LR(0.1))
    give(params, 0, [0, 1])
    optimizer.step()
    assert not optimizer.state[params[0]]  # it has nothing to learn a basis from
    assert optimizer.state[params[1]].keys() == optimizer.state[params[4]].keys()


class Seen(Transform):
    """Notes the dtypes that it is run on."""

    scope = "element"

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def apply(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        self.dtypes.update(tensor.dtype for tensor in tensors)
        return tensors


def test_what_stands_in_a_cast_runs_in_it() -> None:
    module = Seen()
    trained(lambda: [To([module], "float32"), LR(0.1)], nothing, MINE)
    assert module.dtypes == {torch.float32}


def test_float16_is_computed_in_float32_whatever_comes_first() -> None:
    """An eps of 1e-8 is 0 in float16."""
    single, half = torch.float32, torch.float16
    found = []
    for dtypes in ([single, half], [half, single]):
        params = [Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
        optimizer = Optimizer(params, Adam(), LR(0.1))
        for _ in range(3):
            for param in params:
                param.grad = torch.tensor([0.0, 1e-4, 1.0]).to(param.dtype)
            optimizer.step()
        found.append({param.dtype: param.detach() for param in params})
    assert found[0][half].isfinite().all()
    for dtype in (single, half):
        torch.testing.assert_close(found[0][dtype], found[1][dtype], rtol=1e-6, atol=1e-6)


def test_what_coefficients_count_is_in_the_state_after_each_step() -> None:
    params = parameters()
    optimizer = Optimizer(params, Counted(), LR(0.1))
    for step in range(4):
        give(params, step)
        optimizer.step()
        assert all(optimizer.state[param]["0/count"] == step + 1 for param in params)


def test_a_plan_knows_the_state_of_a_map_inside_another_projection() -> None:
    def build() -> Optimizer:
        return Optimizer(parameters(), VectorProjection([IntrinsicSubspace([Adam()], 2)]), LR(0.1))

    one, other = build(), build()
    for step in range(2):
        give(all_of(one), step)
        one.step()
    other.load_state_dict(one.state_dict())  # refuses numbers other than those planned
    assert other.state[all_of(other)[0]]["0/modules/0/elements"] == 31


class Growing(ProjectionBase):
    """The first elements, one more in each step."""

    scope = "tensor"
    kinds = {"count": "scalar"}

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        return {"count": 1}

    def refresh(self, states: list[Entries]) -> list[Entries | None]:  # type: ignore[override]
        return [{"count": state["count"] + 1} for state in states]

    def project(self, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        return [tensor[: state["count"]] for tensor, state in zip(tensors, rest[3], strict=True)]

    def unproject(self, projected_tensors: Any, params: list[Tensor], *_: Any) -> list[Tensor]:
        pairs = zip(projected_tensors, params, strict=True)
        return [torch.cat([t, t.new_zeros(len(p) - len(t))]) for t, p in pairs]


class Pairs(ProjectionBase):
    """Makes three times as much of what has two elements, and leaves others alone."""

    scope = "tensor"

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return tensor.numel() == 2

    def project(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return [3 * tensor for tensor in tensors]

    def unproject(self, projected_tensors: Any, *_: Any) -> list[Tensor]:
        return list(projected_tensors)


def test_what_runs_inside_is_planned_anew_for_other_shapes() -> None:
    (param,) = params = parameters([(7,)])
    optimizer = Optimizer(params, Growing([Pairs([Scale(1.0)])]), Scale(0.1))
    for step, (count, factor) in enumerate([(2, 3.0), (3, 1.0), (4, 1.0)]):
        before = param.detach().clone()
        give(params, step)
        optimizer.step()
        assert param.grad is not None
        expected = torch.zeros(7, dtype=torch.float64)
        expected[:count] = 0.1 * factor * param.grad[:count]
        torch.testing.assert_close(before - param.detach(), expected)
