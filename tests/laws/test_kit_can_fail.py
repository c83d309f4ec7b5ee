"""For each law a component that breaks it, and nothing else."""

from __future__ import annotations

import importlib
import re
from types import SimpleNamespace

import pytest
import torch

from projcore import Module, ProjectionBase, Transform, registry
from projcore.plugin import hookimpl
from projcore.testing import Subject, check_component
from projcore.testing.laws import LAWS
from projcore.testing.parts import Merge, Mix, Momentum, Scale, UnitNorm
from projcore.testing.problem import flat, shaped

LINEAR = frozenset({"linear"})
ALIGNED = frozenset({"linear", "lossless", "orthonormal", "data_dependent"})
LAYOUT = frozenset({"linear", "lossless", "orthonormal", "layout"})


class Counting(Momentum):
    """Counts its steps on itself."""

    count = 0

    def apply(self, *args):
        self.count += 1
        return super().apply(*args)


class Unchecked(Momentum):
    """Takes anything for a number."""

    def check(self, settings):
        pass


class TransposedParams(Mix):
    """Projects a point by the transpose, which is no left inverse."""

    def project(self, tensors, params, grads, loss, states, settings, current):
        return super().project(tensors, params, grads, loss, states, settings, "update")


class IdentityFirst(ProjectionBase):
    """Learns a shear from the second time on, and projects by it where its transpose is due."""

    scope = "tensor"

    def __init__(self, modules):
        super().__init__(modules, project_params=True, project_grad=True)

    def init(self, tensor, settings):
        return {"count": 0, "shear": 0.0}

    def refresh(self, tensors, params, grads, loss, states, settings):
        return [{"count": s["count"] + 1, "shear": 0.5 * (s["count"] > 0)} for s in states]

    def project(self, tensors, params, grads, loss, states, settings, current):
        sign = -1 if current == "params" else 1
        return [self.move(t, sign * s["shear"]) for t, s in zip(tensors, states, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        pairs = zip(projected_tensors, states, strict=True)
        return [self.move(t, s["shear"]) for t, s in pairs]

    def move(self, tensor, shear):
        x = flat([tensor])
        if len(x) < 2:
            return tensor
        return shaped(torch.cat([x[:1] + shear * x[1:2], x[1:]]), [tensor])[0]


class Undeclared(Mix):
    """Reads params, and does not say so."""

    def project(self, tensors, params, grads, loss, states, settings, current):
        tensors = [tensor + 0 * param for tensor, param in zip(tensors, params, strict=True)]
        return super().project(tensors, params, grads, loss, states, settings, current)


class WrongInFloat32(Mix):
    """Projects gradients by the inverse, if they are float32."""

    def project(self, tensors, params, grads, loss, states, settings, current):
        if tensors[0].dtype is torch.float32:
            current = "params"
        return super().project(tensors, params, grads, loss, states, settings, current)


class Halving(ProjectionBase):
    """Keeps the first half of all elements, and evaluates the closure without the other half."""

    geometry = "pointwise"

    def project(self, tensors, *_, **__):
        x = flat(tensors)
        return [x[: len(x) // 2]]

    def unproject(self, projected_tensors, params, *_, **__):
        (z,) = projected_tensors
        return shaped(torch.cat([z.double(), z.new_zeros(flat(params).numel() - len(z))]), params)


class Rolling(Merge):
    """Rolls the vector by one more place at each step."""

    def init(self, tensor, settings):
        return {"places": 0}

    def refresh(self, tensors, params, grads, loss, states, settings):
        return [{"places": state["places"] + 1} for state in states]

    def project(self, tensors, params, grads, loss, states, settings, current):
        (vector,) = super().project(tensors)
        return [vector.roll(int(states[0]["places"]))]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        (vector,) = projected_tensors
        return super().unproject([vector.roll(-int(states[0]["places"]))], params)


class WholeNorm(UnitNorm):
    """Divides by the norm of all tensors, and says that it works on each by itself."""

    batched = False

    def apply(self, tensors, *_):
        norm = torch.linalg.vector_norm(flat(tensors)) + 1e-12
        return [tensor / norm.to(tensor.dtype) for tensor in tensors]


class DeafToBatches(UnitNorm):
    """Says that it takes batches, and takes them for one tensor."""

    def apply(self, *args, batch_dims=0):
        return super().apply(*args)


class Aliasing(Momentum):
    """Keeps one tensor under two names."""

    def init(self, tensor, settings):
        buffer = torch.zeros_like(tensor)
        return {"momentum_buffer": buffer, "view": buffer}

    def apply(self, tensors, params, grads, loss, states, settings):
        super().apply(tensors, params, grads, loss, states, settings)
        return [state["view"].clone() for state in states]


class ByPlace(Momentum):
    """Tells tensors apart by their places among those that it is given, as seeds might."""

    kinds = {**Momentum.kinds, "place": "scalar"}

    def create_state(self, objective, state):
        settings = super().create_state(objective, state)
        for place, node in enumerate(state.entries):
            node.setdefault("place", place)
        return settings

    def apply(self, tensors, params, grads, loss, states, settings):
        super().apply(tensors, params, grads, loss, states, settings)
        return [state["momentum_buffer"] * (1 + state["place"]) for state in states]


class Dotted(Momentum):
    """Names its memory so that a checkpoint splits the name."""

    def init(self, tensor, settings):
        return {**super().init(tensor, settings), "momentum.sum": 0.0}


class InPlace(Scale):
    """Writes into what it was given."""

    def apply(self, tensors, params, grads, loss, states, settings):
        torch._foreach_mul_(tensors, settings[0]["lr"])
        return tensors


class Reseeding(Scale):
    """Sets the global seed."""

    def apply(self, *args):
        torch.manual_seed(0)
        return super().apply(*args)


class LearnsInProject(Mix):
    """Changes its state when it projects a point."""

    def init(self, tensor, settings):
        return {"calls": 0}

    def project(self, tensors, params, grads, loss, states, settings, current):
        for state in states:
            state["calls"] += current == "params"
        return super().project(tensors, params, grads, loss, states, settings, current)


class Swallowing(Scale):
    """Goes on after any exception."""

    def apply(self, tensors, params, grads, loss, states, settings):
        try:
            return super().apply(tensors, params, grads, loss, states, settings)
        except Exception:
            return tensors


class Deaf(Scale):
    """Reads its own default in place of the setting."""

    def apply(self, tensors, params, grads, loss, states, settings):
        return [tensor * self.defaults["lr"] for tensor in tensors]


class Contiguous(Scale):
    """Takes contiguous tensors only."""

    def apply(self, tensors, params, grads, loss, states, settings):
        return [(t.view(-1) * settings[0]["lr"]).view(t.shape) for t in tensors]


class DropLast(ProjectionBase):
    """All elements but the last; registered below, to nest others in."""

    def project(self, tensors, *_, **__):
        return [flat(tensors)[:-1]]

    def unproject(self, projected_tensors, params, *_, **__):
        (z,) = projected_tensors
        return shaped(torch.cat([z, z.new_zeros(1)]), params)


class NoFortyOne(Mix):
    """Breaks down on what the projection above hands in."""

    def project(self, tensors, *args):
        if tensors[0].numel() == 41:
            raise RuntimeError("forty-one")
        return super().project(tensors, *args)


class ZeroByZero(Module):
    """Divides by what is 0 in float16; a Transform would get float32 copies."""

    def step(self, update, objective, state):
        return [tensor / (tensor.abs() + 1e-8) for tensor in update]


class CountsAnywhere(Transform):
    """Its count is where torch makes new tensors."""

    scope = "element"
    kinds = {"step": "scalar"}

    def init(self, tensor, settings):
        return {"step": torch.zeros(())}

    def apply(self, tensors, params, grads, loss, states, settings):
        for state in states:
            state["step"] += 1
        return [
            tensor / state["step"].item() for tensor, state in zip(tensors, states, strict=True)
        ]


class SignOfMomentum(Transform):
    """The sign of NaN is 0."""

    scope = "element"
    kinds = {"momentum": "first"}

    def init(self, tensor, settings):
        return {"momentum": torch.zeros_like(tensor)}

    def apply(self, tensors, params, grads, loss, states, settings):
        for tensor, state in zip(tensors, states, strict=True):
            state["momentum"] = 0.9 * state["momentum"] + tensor
        return [_sign(state["momentum"]) for state in states]


def _sign(x):
    if not x.is_complex():
        return x.sign()
    return torch.view_as_complex(torch.view_as_real(x.resolve_conj()).sign())


def subject(cls, tags=frozenset(), **example):
    spec = registry.name_of(cls)
    return Subject(cls, cls.__name__, frozenset(tags), example, spec)


# Name, subject, the law it breaks, and those that cannot hold if that one does not.
class AskingNames(Module):
    """Divides by the number of all parameters of the optimizer."""

    def step(self, update, objective, state):
        return [tensor / len(objective.space.context.parameter_names) for tensor in update]


class Squares(Transform):
    """Multiplies each tensor by a product of it with itself, which autocast would round."""

    scope = "tensor"

    def apply(self, tensors, params, grads, loss, states, settings):
        rows = [tensor.reshape(1, -1) for tensor in tensors]
        return [t * (row @ row.mT).reshape(()) for t, row in zip(tensors, rows, strict=True)]


class Misfolded(Transform):
    """Halves the update, and says that it leaves a third of it."""

    scope = "element"

    def coefficients(self, states, settings):
        return [(1 / 3, 0.0)] * len(states)

    def apply(self, tensors, params, grads, loss, states, settings):
        return [tensor / 2 for tensor in tensors]


class ReturnsATensor(Mix):
    """Returns the first tensor in place of the list."""

    def project(self, tensors, *args):
        return super().project(tensors, *args)[0]


class ReturnsTooFew(Mix):
    """Forgets a tensor."""

    def unproject(self, projected_tensors, *args):
        return super().unproject(projected_tensors, *args)[:-1]


class ReturnsNone(Momentum):
    """Has no return."""

    def apply(self, *args):
        super().apply(*args)


class ReturnsOneState(Mix):
    """Learns one map for all."""

    def refresh(self, states):
        return [{}]


class Reflection(ProjectionBase):
    """Reflects each tensor so that its gradient is a multiple of the first axis."""

    scope = "tensor"

    def __init__(self, modules):
        super().__init__(modules, project_params=True, project_grad=True)

    def init(self, tensor, settings):
        normal = torch.zeros(flat([tensor]).numel(), dtype=torch.float64, device=tensor.device)
        return {"normal": normal}

    def refresh(self, tensors, states):
        return [{"normal": self.normal(flat([tensor]))} for tensor in tensors]

    @staticmethod
    def normal(x):
        if not x.numel():
            return x
        first = torch.zeros_like(x)
        first[0] = torch.linalg.vector_norm(x)
        return torch.nn.functional.normalize(x - first, dim=0)

    def project(self, tensors, params, grads, loss, states, settings, current):
        return [reflect(t, state["normal"]) for t, state in zip(tensors, states, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        return self.project(projected_tensors, params, grads, loss, states, settings, current)


def reflect(tensor, normal):
    x = flat([tensor])
    return shaped(x - 2 * (normal @ x) * normal, [tensor])[0]


class WrittenOver(Reflection):
    """Writes the new map over the old one."""

    def refresh(self, tensors, states):
        for new, state in zip(super().refresh(tensors, states), states, strict=True):
            state["normal"].copy_(new["normal"])


BROKEN = [
    (ReturnsATensor, LINEAR, {}, "returns", ()),
    (ReturnsTooFew, LINEAR, {}, "returns", ()),
    (ReturnsNone, (), {}, "returns", ()),
    (ReturnsOneState, LINEAR, {}, "returns", ()),
    (WrittenOver, ALIGNED, {}, "refresh", ()),
    (Counting, (), {}, "recipe", ()),
    (Unchecked, (), {}, "settings", ()),
    (TransposedParams, LINEAR, {}, "round_trip", ()),
    (IdentityFirst, LINEAR | {"data_dependent"}, {}, "adjoint", ("composition", "nesting")),
    (Undeclared, LINEAR, {}, "round_trip", ("adjoint", "composition", "nesting")),
    (WrongInFloat32, LINEAR, {}, "adjoint", ()),
    (Mix, LINEAR | {"lossless", "orthonormal"}, {}, "adjoint", ("round_trip", "invariance")),
    (Halving, LINEAR, {}, "composition", ()),
    (Rolling, LAYOUT, {}, "invariance", ("composition", "nesting", "passes")),
    (WholeNorm, (), {}, "scope", ("passes", "in_parts")),
    (Misfolded, (), {}, "passes", ("reach",)),
    (DeafToBatches, (), {}, "batched", ()),
    (Aliasing, (), {}, "resume", ("in_parts",)),
    (ByPlace, (), {}, "in_parts", ("scope", "batched", "passes")),
    (Dotted, (), {}, "memory", ()),
    (AskingNames, (), {}, "frozen", ()),
    (InPlace, (), {}, "side_effects", ()),
    (Reseeding, (), {}, "side_effects", ()),
    (LearnsInProject, LINEAR, {}, "side_effects", ()),
    (Swallowing, (), {}, "atomic", ()),
    (Deaf, (), {}, "reach", ()),
    (NoFortyOne, LINEAR, {}, "nesting", ()),
    (Contiguous, (), {}, "inputs", ()),
    (ZeroByZero, (), {}, "inputs", ()),
    (CountsAnywhere, (), {}, "inputs", ()),
    (SignOfMomentum, (), {}, "nonfinite", ()),
]


@pytest.fixture
def drop_last():
    @hookimpl
    def projcore_register_projections(register):
        register("drop_last", f"{__name__}:DropLast", summary="All elements but the last.")

    hooks = SimpleNamespace(projcore_register_projections=projcore_register_projections)
    registry.register_plugin(hooks, "kit_can_fail")
    yield
    registry.unregister_plugin("kit_can_fail")


@pytest.mark.parametrize(
    ("cls", "tags", "example", "law", "implied"),
    BROKEN,
    ids=[f"{law}-{cls.__name__}" for cls, _, _, law, _ in BROKEN],
)
@pytest.mark.usefixtures("drop_last")
def test_that_law_reports_it(cls, tags, example, law, implied, monkeypatch):
    if law == "nesting":  # with all partners, so with the one that it breaks down in
        module = importlib.import_module("projcore.testing.laws.nesting")  # not the law
        monkeypatch.setattr(module, "MOST", 1000)
    results = check_component(subject(cls, tags, **example))
    failed = {result.law: result.message for result in results if result.status == "failed"}
    # What is broken may also break in, or around, some projection that happens to be registered.
    assert {law, *implied} <= set(failed) <= {law, *implied, "nesting"}, failed
    assert cls.__name__ in failed[law]
    assert f"{law!r}" in failed[law]


def test_a_gradient_along_one_axis_is_no_fault():
    results = check_component(subject(Reflection, ALIGNED))
    assert [result for result in results if result.status == "failed"] == []


def test_what_all_laws_presuppose_is_told_alone():
    results = check_component(subject(ReturnsNone))
    skipped = {result.message for result in results if result.status == "skipped"}
    assert "'returns' comes first" in skipped
    assert "passed" not in {result.status for result in results}


@pytest.mark.parametrize(("cls", "law"), [(Deaf, "reach"), (TransposedParams, "round_trip")])
def test_a_failure_tells_the_conditions(cls, law):
    results = check_component(subject(cls, LINEAR if cls is TransposedParams else ()))
    message = next(result.message for result in results if result.law == law)
    assert re.search(
        r"Seen .*on parameters of shapes \(.*, in torch\.float\d+, from seed 0\.$", message
    )
    reason = next(result.reason for result in results if result.law == law)
    assert reason in message.replace(f"{cls.__name__} breaks the law {law!r}: ", "")
    assert "Seen" not in reason


def test_autocast_reports_a_step_that_autocast_reaches(monkeypatch):
    assert "autocast" not in failures(Squares)
    module = importlib.import_module("projcore.optimizer")
    monkeypatch.setattr(module, "run_without_autocast", lambda run, closure, _: run(closure))
    assert "autocast" in failures(Squares)


def failures(cls):
    results = check_component(subject(cls))
    return {result.law for result in results if result.status == "failed"}


def test_every_law_is_broken_once():
    own_tests = {"rebuild", "compiled", "autocast"}
    broken = {law for *_, law, _ in BROKEN} | own_tests
    assert {law.name for law in LAWS} == broken | {"atomic_everywhere", "nesting_everywhere"}
