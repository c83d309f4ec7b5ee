"""Every registered component survives each form of a spec: text, Python's, JSON and TOML."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projcore import Chain, Module, build, registry
from projcore.errors import ProjcoreError, SpecError


def examples():
    for component in [*registry.components("projection"), *registry.components("module")]:
        given = component.example
        inner = {"modules": ["sign", {"lr": 0.5}]} if component.kind == "projection" else {}
        for example in [given] if isinstance(given, Mapping) else given or []:
            name = f"{component.name}-{example}"
            yield pytest.param(component, {**inner, **example}, id=name)


EXAMPLES = [*examples()]


class NoNoneInTomlError(Exception):
    """TOML cannot say it."""


def toml(value):
    """Writes a value as TOML's inline form."""
    if value is None:
        raise NoNoneInTomlError
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def read_toml(text):
    return pytest.importorskip("tomllib").loads(text)["optimizer"]


@pytest.mark.parametrize(("component", "arguments"), EXAMPLES)
def test_each_form_builds_the_same(component, arguments):
    module = registry.load_component(component)(**arguments)
    assert str(build({component.name: arguments})) == str(module)
    chain = Chain("lr(0.5)", module)
    for each in (module, chain):
        text, spec = str(each), each.spec()
        forms = [text, spec, json.loads(json.dumps(spec)), read_toml(f"optimizer = {toml(text)}")]
        with contextlib.suppress(NoNoneInTomlError):
            forms.append(read_toml(f"optimizer = {toml(spec)}"))
        for form in forms:
            built = build(form)
            assert type(built) is type(each)
            assert str(built) == text
            assert built.spec() == spec


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("optimizer = 'adam'", "adam()"),
        ("optimizer = 'adam(); lr(1e-3)'", "adam(); lr(0.001)"),
        ("optimizer = {lr = 1e-3}", "lr(0.001)"),
        ("optimizer.lr = 1e-3", "lr(0.001)"),
        ("optimizer = ['adam', {lr = 1e-3}]", "adam(); lr(0.001)"),
        ("[optimizer]\nadam = {}", "adam()"),
        ("[optimizer.adam]\nbetas = [0.9, 0.95]\neps = 1e-6", "adam(betas=(0.9, 0.95), eps=1e-06)"),
        ("[optimizer]\nadam = {betas = [0.9, 0.95]}", "adam(betas=(0.9, 0.95))"),
        ("[[optimizer]]\nadam = {}\n[[optimizer]]\nlr = 1e-3", "adam(); lr(0.001)"),
        ("[[optimizer]]\n[optimizer.adam]\namsgrad = true\n[[optimizer]]\nlr = 1",
         "adam(amsgrad=True); lr(1)"),
        ("[optimizer.vector]\nmodules = ['adam', {lr = 0.1}]", "vector([adam(), lr(0.1)])"),
        ("[optimizer.vector]\nmodules = 'adam; lr(0.1)'", "vector([adam(), lr(0.1)])"),
        ("[optimizer]\nvector = ['adam', {lr = 0.1}]", "vector([adam(), lr(0.1)])"),
        (
            "[optimizer.to]\ndtype = 'float64'\n[[optimizer.to.modules]]\nadam = {}\n"
            "[[optimizer.to.modules]]\nlr = 0.1",
            "to([adam(), lr(0.1)], 'float64')",
        ),
        (
            "[optimizer.to]\ndtype = 'float64'\n[[optimizer.to.modules]]\n"
            "[[optimizer.to.modules.vector.modules]]\nclip_norm = inf",
            "to([vector([clip_norm(inf)])], 'float64')",
        ),
        ("optimizer = ['adafactor(lr=None)', {clip_norm = 1.0}]",
         "adafactor(lr=None); clip_norm(1.0)"),
    ],
)  # fmt: skip
def test_what_one_writes_in_toml(text, printed):
    assert str(build(read_toml(text))) == printed


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("optimizer = ['adam', 'lr', 1e-3]", ["lr needs 'lr'", "at spec[1]\n  lr\n  ^^"]),
        ("optimizer = ['adam', 1e-3]", ["0.001 at spec[1] is not a module"]),
        ("[optimizer]\nadam = {}\nlr = 0.1", ["at spec has 2 keys", "For a chain, write a list"]),
        ("[[optimizer]]\nadam = {}\nlr = 0.1", ["at spec[0] has 2 keys"]),
        ("[optimizer]\nname = 'adam'\neps = 1e-8", ["has 2 keys", "one, its name: {'adam': "]),
        (
            "[optimizer.to]\ndtype = 'float64'\n[[optimizer.to.modules]]\nadam = {}\n"
            "[[optimizer.to.modules]]\nadam = {betaz = 1}",
            ["Did you mean 'betas'?", "at spec['to']['modules'][1]['adam']['betaz']"],
        ),
        ("optimizer.vector = ['adam', 'lr(-1)']", ["at spec['vector'][1]\n  lr(-1)\n  ^^"]),
        ("optimizer.vector = ['adam', 'lr(']", ["at spec['vector'][1]\n  lr(\n    ^"]),
        ("optimizer.vector = ['adam', '']", ["The spec is empty", "at spec['vector'][1]"]),
        ("optimizer = {lr = 2026-01-01}", ["LR(lr=datetime.date(2026, 1, 1))", "at spec['lr']"]),
        ("optimizer = {to = {dtype = 'flaot32', modules = 'adam'}}", ["flaot32", "at spec['to']"]),
    ],
)
def test_an_error_in_toml_points_at_its_place(text, messages):
    with pytest.raises(ProjcoreError) as caught:
        build(read_toml(text))
    for message in messages:
        assert message in str(caught.value)


def test_none_among_numbers_is_read_as_it_was_given():
    module = build("adafactor(eps=(None, 0.01))")
    assert str(build(module.spec())) == str(module) == "adafactor(eps=(None, 0.01))"


def test_an_error_of_any_kind_in_a_constructor_is_pointed_at(installed, plugin, found):
    installed.append(found("it", plugin(modules={"odd": f"{__name__}:Odd"})))
    for spec, place in (("odd()", "  odd()\n  ^^^"), ([{"odd": {}}], "at spec[0]['odd']")):
        with pytest.raises(SpecError) as caught:
            build(spec)
        assert "Odd rejected its arguments: KeyError: 'what'" in str(caught.value)
        assert str(caught.value).endswith(place)


class Odd(Module):
    """Fails."""

    def __init__(self):
        raise KeyError("what")

    def step(self, update, objective, state):
        return update


ATTACK = "__import__('pathlib').Path('{}').touch()"
SPECS = [build({each.values[0].name: each.values[1]}).spec() for each in EXAMPLES]
NAMES = [each.values[0].name for each in EXAMPLES]
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(SPECS),
    st.sampled_from(NAMES),
    st.sampled_from([[], {}, [[]], {"": 0}, 10**400, -(10**400), "inf", "cpu:99", math.nan]),
    st.sampled_from(
        [ATTACK, "os.system('x')", "().__class__", "lr(__builtins__)", "fractions:Fraction"]
    ),
)


@st.composite
def mutated(draw, spec):
    """A spec of which some part was exchanged, dropped, doubled or renamed."""
    if isinstance(spec, (dict, list)) and spec and draw(st.integers(0, 3)):
        spec = dict(spec) if isinstance(spec, dict) else list(spec)
        keys = list(spec) if isinstance(spec, dict) else list(range(len(spec)))
        key = draw(st.sampled_from(keys))
        way = draw(st.sampled_from(["inside", "inside", "drop", "rename", "double"]))
        if way == "inside":
            spec[key] = draw(mutated(spec[key]))
        elif way == "drop":
            del spec[key]
        elif isinstance(spec, dict):
            value = spec.pop(key) if way == "rename" else spec[key]
            spec[draw(st.text(max_size=4) | st.sampled_from(NAMES) | st.integers())] = value
        else:
            spec.append(spec[key])
        return spec
    return draw(junk)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SPECS).flatmap(mutated))
def test_a_spoilt_spec_is_a_module_or_our_error(spec):
    with contextlib.suppress(ProjcoreError):
        module = build(spec)
        assert isinstance(module, Module)
        assert isinstance(str(module), str)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SPECS), st.data())
def test_a_spoilt_expression_is_a_module_or_our_error(tmp_path_factory, spec, data):
    mark = tmp_path_factory.getbasetemp() / "mark"
    text = str(build(spec))
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 6)))
    pieces = st.text("()[]{},;:=.*'\"\\-1e_ \n", max_size=3) | st.sampled_from(NAMES)
    new = data.draw(
        pieces | st.sampled_from([ATTACK.format(mark), "lambda: 0", "None", "()", "10**9"])
    )
    with contextlib.suppress(ProjcoreError):
        assert isinstance(build(text[:begin] + new + text[end:]), Module)
    assert not mark.exists()
