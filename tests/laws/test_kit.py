"""How the kit counts, reports and refuses."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from projcore import ProjectionBase, registry
from projcore.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from projcore.plugin import hookimpl
from projcore.testing import Subject, check_component, checks, parts, summary
from projcore.testing.law import same_bits
from projcore.testing.packaging import Package
from projcore.testing.subject import as_subjects


class Unchecked(parts.Scale):
    """Takes anything for a learning rate."""

    def check(self, settings):
        pass


class Popping(parts.Momentum):
    """Changes the argument that it was given."""

    def __init__(self, options):
        super().__init__(options.pop("momentum", 0.5))


class Nowhere(ProjectionBase):
    """Applies to nothing."""

    def applies(self, tensor, settings):
        return False

    def project(self, tensors, *_, **__):
        return tensors

    def unproject(self, projected_tensors, *_, **__):
        return projected_tensors


@pytest.fixture
def plugin():
    names = []

    def add(name, kind="modules", **components):
        def hook(register):
            for component, (cls, example) in components.items():
                register(component, f"{__name__}:{cls}", summary="A test.", example=example)

        hook.__name__ = f"projcore_register_{kind}"
        registry.register_plugin(SimpleNamespace(**{hook.__name__: hookimpl(hook)}), name)
        names.append(name)

    yield add
    for name in names:
        registry.unregister_plugin(name)


def test_one_generator_feeds_both():
    made = checks(parts.Momentum)
    results = check_component(parts.Momentum)
    assert [(r.component, r.law) for r in results] == [(c.subject.name, c.law.name) for c in made]
    assert {r.law for r in results if r.status == "skipped"} >= {c.law.name for c in made if c.skip}


def test_summary_counts():
    results = check_component(parts.Scale)
    counts = {s: sum(r.status == s for r in results) for s in ("passed", "skipped")}
    assert counts["passed"] > 5
    assert summary(results) == (
        f"{counts['passed']} passed, 0 failed, 0 failed as expected, {counts['skipped']} skipped"
    )


def test_a_failure_says_law_and_cure():
    (failed,) = [r for r in check_component(Unchecked) if r.status == "failed"]
    assert failed.law == "settings"
    assert "breaks the law 'settings': check accepted lr=nan." in failed.message
    assert "require(self, 'lr', settings['lr'], minimum=...)" in failed.message
    assert "Violation" in failed.traceback


def test_expected_failures_are_strict():
    results = check_component(
        Unchecked, expected_failures={"settings": "shown", "Unchecked-atomic": "will pass"}
    )
    found = {r.law: r for r in results if r.status in ("failed", "expected")}
    assert found["settings"].status == "expected"
    assert found["settings"].message.startswith("shown")
    assert found["atomic"].status == "failed"
    assert "Remove it from expected_failures" in found["atomic"].message
    assert set(found) == {"settings", "atomic"}


def test_an_expected_failure_that_is_no_check():
    with pytest.raises(ArgumentError, match=r"'atomicc'.*is no check"):
        checks(parts.Scale, expected_failures={"atomicc": "typo"})


def test_an_empty_run_raises(plugin):
    with pytest.raises(ArgumentError, match="nothing to check"):
        checks()
    plugin("only_recipes", "recipes", something=("as_subjects", None))
    with pytest.raises(ArgumentError, match="'something' is a recipe"):
        checks("something")
    assert {type(check.subject) for check in checks("only_recipes")} == {Package}
    with pytest.raises(UnknownNameError, match="no_such_plugin"):
        checks("no_such_plugin")
    with pytest.raises(ArgumentTypeError, match="was given to be checked"):
        checks(3)


def test_what_is_broken_through_and_through_fails():
    """It is not skipped, as if there were nothing to say about it."""
    results = check_component(Nowhere)
    assert {r.status for r in results if r.law in ("resume", "reach")} == {"failed"}


def test_names_classes_modules_and_components_are_the_same():
    component = registry.get("module", "adam")
    by_name = as_subjects("adam")
    assert as_subjects(component) == by_name == as_subjects("adaptive:adam")
    assert as_subjects(registry.load("module", "adam")) == by_name
    assert all(subject in as_subjects("adaptive") for subject in by_name)
    (subject,) = as_subjects(parts.Momentum(momentum=0.5))
    assert (subject.cls, subject.example) == (parts.Momentum, {"momentum": 0.5})


def test_a_component_has_a_subject_for_each_example(plugin):
    plugin("examples", unchecked=("Unchecked", [{"lr": 0.1}, {"lr": 0.2}]))
    names = [subject.name for subject in as_subjects("unchecked")]
    assert names == ["unchecked(lr=0.1)", "unchecked(lr=0.2)"]


def test_rebuild_can_fail(plugin):
    plugin("popping", popping=("Popping", {"options": {"momentum": 0.9}}))
    (result,) = [r for r in check_component("popping") if r.law == "rebuild"]
    assert result.status == "failed"
    assert "'popping({})' builds does something else" in result.message


def test_it_imports_torch_only_when_it_checks():
    code = "import sys, projcore.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_decorator(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "from projcore.testing import Subject, parametrize_with_checks, parts\n"
        "class Unchecked(parts.Scale):\n"
        "    def check(self, settings):\n"
        "        pass\n"
        "@parametrize_with_checks(Unchecked, expected_failures={'settings': 'shown'})\n"
        "def test_expected(check):\n"
        "    check()\n"
        "@parametrize_with_checks(Unchecked, expected_failures={'memory': 'wrong'})\n"
        "def test_strict(check):\n"
        "    check()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_it.py"]
    command += ["-k", "settings or memory or atomic or round_trip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "XFAIL test_it.py::test_expected[Unchecked-settings] - shown" in done.stdout
    assert "FAILED test_it.py::test_strict[Unchecked-settings]" in done.stdout
    assert "FAILED test_it.py::test_strict[Unchecked-memory]" in done.stdout
    assert "PASSED test_it.py::test_strict[Unchecked-atomic]" in done.stdout
    assert "round_trip: for a projection" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 failed, ")


def test_bits_of_a_tensor_with_a_stride_of_its_own():
    """torch takes one element for contiguous whatever its stride, but does not view it as bytes."""
    one = torch.ones(3)[::2][:1]
    assert same_bits(one, torch.ones(1))
    assert not same_bits(one, torch.zeros(1))


class Padded(ProjectionBase):
    """Appends a zero to each tensor: one coordinate inside stands for nothing outside."""

    scope = "tensor"

    def __init__(self, modules):
        super().__init__(modules, project_params=True, project_grad=True)

    def project(self, tensors, *_, **__):
        return [torch.cat([tensor.reshape(-1), tensor.new_zeros(1)]) for tensor in tensors]

    def unproject(self, projected_tensors, params, *_, **__):
        pairs = zip(projected_tensors, params, strict=True)
        return [tensor[:-1].reshape(param.shape) for tensor, param in pairs]


@pytest.mark.parametrize("redundant", [False, True])
def test_redundant_maps_need_not_keep_every_z(redundant):
    tags = {"linear", "lossless", "orthonormal", *(["redundant"] if redundant else [])}
    results = check_component(Subject(Padded, "Padded", frozenset(tags)))
    failed = {result.law for result in results if result.status == "failed"}
    assert failed == (set() if redundant else {"round_trip", "adjoint"})


class Transposed(ProjectionBase):
    """Transposes matrices. In a vector there are none, but elementwise modules run outside."""

    geometry = "layout"
    scope = "tensor"

    def applies(self, tensor, settings):
        return tensor.ndim == 2

    def project(self, tensors, *_, **__):
        return [tensor.mT for tensor in tensors]

    def unproject(self, projected_tensors, *_, **__):
        return [tensor.mT for tensor in projected_tensors]


def test_a_pair_that_cannot_be_checked_does_not_end_the_check_of_all_others():
    (check,) = [each for each in checks(Transposed) if each.law.name == "nesting"]
    assert "Transposed in Merge: it applies to none of the tensors" in (check() or "")
