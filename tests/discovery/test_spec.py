"""Specs: text and JSON to modules and back; what is wrong is pointed at; nothing is evaluated."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import projcore
from projcore import Chain, Module, ProjectionBase, registry
from projcore.errors import (
    ArgumentError,
    NeedsError,
    PluginError,
    ProjcoreError,
    SpecError,
    UnknownNameError,
)
from projcore.spec import build, expression, to_spec


class Plain(Module):
    """Takes nothing."""

    def step(self, update, objective, state):
        return update


class Rate(Plain):
    """Its first parameter is called as it is."""

    def __init__(self, rate=0.1, decay=0.0):
        if isinstance(rate, float) and rate < 0:
            raise ArgumentError(f"Rate(rate={rate}) is out of range. Pass at least 0.")
        super().__init__({"rate": rate, "decay": decay})


class Anything(Plain):
    """Takes any value."""

    def __init__(self, value=None, *, extra=None):
        super().__init__()


class Needy(Plain):
    """Raises errors of several kinds."""

    def __init__(self, kind, count=1):
        super().__init__()
        raise {"value": ValueError, "type": TypeError, "needs": NeedsError}[kind]("it cannot be")


class Switch(Plain):
    """Has modules under another name."""

    def __init__(self, first: Module, second: Module | None = None, label: str = ""):
        super().__init__()


class Within(ProjectionBase):
    """A projection."""

    geometry = "layout"

    def __init__(self, modules, size, name="x"):
        super().__init__(modules)

    def project(self, tensors, *_):
        return tensors

    unproject = project


@pytest.fixture(autouse=True)
def parts(installed, plugin, found):
    here = {"plain": "Plain", "rate": "Rate", "anything": "Anything", "needy": "Needy"}
    here |= {"switch": "Switch"}
    modules = {name: f"{__name__}:{attribute}" for name, attribute in here.items()}
    installed.append(
        found("parts", plugin({"within": f"{__name__}:Within"}, modules, {"cook": "math:sqrt"}))
    )


class Unregistered(Plain):
    pass


@pytest.mark.parametrize(
    ("spec", "printed"),
    [
        ("plain", "plain()"),
        ("plain()", "plain()"),
        ("  rate(0.5) ", "rate(0.5)"),
        ("rate(rate=5e-1)", "rate(0.5)"),
        ("rate(decay=1)", "rate(decay=1)"),
        ("rate(decay=0)", "rate(decay=0)"),  # not the default 0.0: a rank of 1 is not one of 1.0
        ("rate(0.5, 2)", "rate(0.5, decay=2)"),
        ("plain; rate(0.5)", "plain(); rate(0.5)"),
        ("plain; rate(0.5);", "plain(); rate(0.5)"),
        ("[plain, rate]", "plain(); rate()"),
        ("[plain]", "[plain()]"),
        ("plain\nrate(0.5)  # comment", "plain(); rate(0.5)"),
        ("within([plain, rate(0.5)], 3)", "within([plain(), rate(0.5)], 3)"),
        ("within(size=3, modules=plain)", "within([plain()], 3)"),
        (
            "within([plain, [rate, plain]], 3, name='y')",
            "within([plain(), [rate(), plain()]], 3, name='y')",
        ),
        ("parts:within(parts:plain, 3)", "within([plain()], 3)"),
        ("anything(-1)", "anything(value=-1)"),
        ("anything(+2)", "anything(value=2)"),
        ("anything(inf)", "anything(value=inf)"),
        ("anything(-inf)", "anything(value=-inf)"),
        ("anything(extra='a:b')", "anything(extra='a:b')"),
        ("anything([1, 2])", "anything(value=(1, 2))"),
        ("anything([])", "anything(value=[])"),
        ("anything(())", "anything(value=())"),
        ("anything((1,))", "anything(value=(1,))"),
        ("anything(['a', 1])", "anything(value=['a', 1])"),
        ("anything({'a': [1], 'b': None})", "anything(value={'a': (1,), 'b': None})"),
        ("anything((plain, 'x'))", "anything(value=[plain(), 'x'])"),
        ("anything({'m': rate(0.5)})", "anything(value={'m': rate(0.5)})"),
        ("switch(plain, label='z')", "switch(plain(), label='z')"),
        ({"anything": {"value": True}}, "anything(value=True)"),
        ({"rate": 0.5}, "rate(0.5)"),
        ({"rate": {}}, "rate()"),
        ({"rate": {"rate": 0.5, "decay": 1}}, "rate(0.5, decay=1)"),
        ({"anything": [1, 2.5]}, "anything(value=(1, 2.5))"),
        ({"anything": {"value": [[1, 2], [3, 4]]}}, "anything(value=((1, 2), (3, 4)))"),
        ({"anything": {"value": {"lr": 0.1}}}, "anything(value={'lr': 0.1})"),
        ({"anything": "plain"}, "anything(value='plain')"),
        (["plain", {"rate": 0.5}], "plain(); rate(0.5)"),
        (["plain"], "[plain()]"),
        (["plain; rate", ["plain"]], "[plain(), rate()]; [plain()]"),
        (
            {"within": {"modules": ["plain", {"rate": 0.5}], "size": 3}},
            "within([plain(), rate(0.5)], 3)",
        ),
        ({"within": {"modules": "plain; rate", "size": 3}}, "within([plain(), rate()], 3)"),
        ({"within": {"modules": {"rate": 0.5}, "size": 3}}, "within([rate(0.5)], 3)"),
        ({"switch": "rate(0.5)"}, "switch(rate(0.5))"),
        (
            {"switch": {"first": "plain", "second": {"rate": 2.0}}},
            "switch(plain(), second=rate(2.0))",
        ),
        ({"parts:rate": 0.5}, "rate(0.5)"),
        (("plain", "rate"), "plain(); rate()"),
    ],
)
def test_what_is_built_prints_back(spec, printed):
    module = build(spec)
    assert expression(module) == printed
    assert str(module) == printed
    assert expression(build(printed)) == printed
    json_form = json.loads(json.dumps(to_spec(module)))
    assert expression(build(json_form)) == expression(build(to_spec(module)))
    assert to_spec(build(json_form)) == to_spec(module)


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        (Plain(), "plain"),
        (Rate(0.5), {"rate": 0.5}),
        (Rate(0.5, 2), {"rate": {"rate": 0.5, "decay": 2}}),
        (Rate(decay=2), {"rate": {"decay": 2}}),
        (Anything({"lr": 1}), {"anything": {"value": {"lr": 1}}}),
        (Anything((1, 2)), {"anything": {"value": [1, 2]}}),
        (Anything(extra=1), {"anything": {"extra": 1}}),
        (Chain(Plain(), Rate(0.5)), ["plain", {"rate": 0.5}]),
        (Within([Plain()], 3), {"within": {"modules": ["plain"], "size": 3}}),
        (Switch(Rate(0.5)), {"switch": {"first": {"rate": 0.5}}}),
    ],
)
def test_the_json_form_reads_like_a_configuration(module, spec):
    assert to_spec(module) == spec
    assert to_spec(build(spec)) == spec


@pytest.mark.parametrize("modules", ["plain; rate(0.5)", ["plain", {"rate": 0.5}]])
def test_modules_given_as_specs_are_printed_as_modules(modules):
    module = Within(modules, 3)
    assert expression(module) == "within([plain(), rate(0.5)], 3)"
    assert to_spec(module) == {"within": {"modules": ["plain", {"rate": 0.5}], "size": 3}}


def test_keys_that_are_no_strings_have_no_json_form():
    module = Anything({2: 3})
    assert expression(build(expression(module))) == "anything(value={2: 3})"
    with pytest.raises(SpecError, match="a mapping whose keys are not strings"):
        to_spec(module)


def test_a_module_is_returned_as_it_is():
    module = Plain()
    assert build(module) is module


def test_one_module_is_no_chain_but_a_list_of_one_is():
    assert type(build("plain")) is Plain
    assert type(build("[plain]")) is Chain
    assert type(build(["plain"])) is Chain
    assert len(build("plain; plain").modules) == 2


def test_modules_may_stand_in_json():
    module = Plain()
    assert build([module, "plain"]).modules[0] is module


@pytest.mark.parametrize(
    "spec",
    ["anything([1, 2])", "anything(value=(1, 2))", {"anything": [1, 2]}, {"anything": (1, 2)}],
)
def test_a_list_of_numbers_becomes_a_tuple(spec):
    assert build(spec).arguments == {"value": (1, 2)}


@pytest.mark.parametrize("name", ["plain", "parts:plain"])
def test_a_name_alone_needs_no_parentheses(name):
    assert type(build(name)) is Plain


@pytest.mark.parametrize(
    ("spec", "error", "message", "fragment"),
    [
        ("plian()", UnknownNameError, "Did you mean 'plain'?", "plian"),
        ("within([plain(), plian()], 3)", UnknownNameError, "Did you mean 'plain'?", "plian"),
        ("plain(; rate", SpecError, "cannot be read", ";"),
        ("within([plain()", SpecError, "cannot be read", None),
        (
            "rate(rat=1)",
            SpecError,
            "rate has no parameter 'rat'. Did you mean 'rate'? Its parameters: rate, decay.",
            "rat=1",
        ),
        ("rate(1, rate=2)", SpecError, "was given 'rate' twice", "rate=2"),
        ("rate(1, 2, 3)", SpecError, "takes 2 arguments by position", "3"),
        ("anything(1, 2)", SpecError, "takes 1 arguments by position", "2"),
        ("plain(1)", SpecError, "takes 0 arguments by position", "1"),
        ("plain(defaults={})", SpecError, "no parameter 'defaults'", "defaults={}"),
        ("within(plain)", SpecError, "within needs 'size'", "within"),
        ("rate(-1.0)", ArgumentError, "Rate(rate=-1.0) is out of range", "rate"),
        ("plain; needy('needs')", NeedsError, "it cannot be", "needy"),
        (
            "needy('value')",
            SpecError,
            "Needy rejected its arguments: ValueError: it cannot",
            "needy",
        ),
        ("needy('type')", SpecError, "Needy rejected its arguments: TypeError: it cannot", "needy"),
        ("cook(4)", UnknownNameError, "There is a recipe of that name", "cook"),
        ("math.sqrt(4)", SpecError, "paths are never resolved", "math.sqrt"),
        ("parts.plain()", SpecError, "paths are never resolved", "parts.plain"),
        ("a:b:plain()", SpecError, "", None),
        ("(lambda: 1)()", SpecError, "paths are never resolved", "lambda: 1"),
        ("rate(1 + 1)", SpecError, "never evaluated", "1 + 1"),
        ("rate(-'a')", SpecError, "never evaluated", "-'a'"),
        ("rate(-True)", SpecError, "never evaluated", "-True"),
        ("rate(x for x in y)", SpecError, "never evaluated", None),
        ("rate(f'{1}')", SpecError, "never evaluated", "f'{1}'"),
        ("rate(b'x')", SpecError, "b'x' is no value that a spec can hold", "b'x'"),
        ("rate(1j)", SpecError, "1j is no value that a spec can hold", "1j"),
        ("rate(...)", SpecError, "Ellipsis is no value that a spec can hold", "..."),
        ("rate(*[1])", SpecError, "a spec has no *", "*[1]"),
        ("rate(**{'rate': 1})", SpecError, "a spec has no **", "{'rate': 1}"),
        ("anything({plain: 1})", SpecError, "A key is a string or a number", "plain"),
        ("anything({**x})", SpecError, "A key is a string or a number", "{**x}"),
        ("anything({1, 2})", SpecError, "never evaluated", "{1, 2}"),
        ("import os", SpecError, "Import is no expression", "import os"),
        ("x = plain()", SpecError, "Assign is no expression", "x = plain()"),
        ("3", SpecError, "3 is not a module", "3"),
        ("[]", SpecError, "[] is not a module", "[]"),
        ("'plain'", SpecError, "'plain' is not a module", "'plain'"),
        ("rate(true)", UnknownNameError, "If no module was meant, write True.", "true"),
        ("rate(SGD)", UnknownNameError, "If no module was meant, write 'SGD'.", "SGD"),
        ("anything('é', plain(x=1))", SpecError, "takes 1 arguments", "plain(x=1)"),
        ("anything(extra=rate(\n  rat=1))", SpecError, "no parameter 'rat'", "rat=1"),
    ],
)
def test_an_error_points_at_its_place(spec, error, message, fragment):
    with pytest.raises(error) as caught:
        build(spec)
    assert type(caught.value) is error
    text = str(caught.value)
    assert message in text
    if fragment is not None:
        *_, line, pointer = text.splitlines()
        begin, end = pointer.index("^"), pointer.rindex("^") + 1
        assert line[begin:end] == fragment
        assert set(pointer) <= {" ", "^"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "The spec is empty"),
        (" \n ", "The spec is empty"),
        ([], "The chain at spec is empty"),
        ([["plain"], []], "The chain at spec[1] is empty"),
        (3, "3 at spec is not a module"),
        (None, "None at spec is not a module"),
        (b"plain", "b'plain' at spec is not a module"),
        (["plain", 3.5], "3.5 at spec[1] is not a module"),
        ({}, "{} at spec has 0 keys"),
        ({"plain": {}, "rate": 1}, "at spec has 2 keys"),
        ({3: 1}, "{3: 1} at spec has 1 keys"),
        (
            {"rate": {"rat": 1}},
            "no parameter 'rat'. Did you mean 'rate'? Its parameters: rate, "
            "decay.\nat spec['rate']['rat']",
        ),
        ({"rate": {1: 1}}, "rate has no parameter 1."),
        (
            {"within": {"modules": ["plain", {"rate": {"x": 1}}], "size": 1}},
            "at spec['within']['modules'][1]['rate']['x']",
        ),
        ({"within": [3]}, "within needs 'size'"),
        ({"within": {"modules": 3, "size": 1}}, "3 at spec['within']['modules'] is not a module"),
        ("\0", "cannot be read"),
        ("(" * 1000, "cannot be read"),
        ("-" * 100000 + "1", ""),
        (lambda: None, "is not a module"),
    ],
)
def test_bad_json_is_a_spec_error_with_its_path(spec, message):
    with pytest.raises(SpecError) as caught:
        build(spec)
    assert message in str(caught.value)


def test_deep_nesting_is_a_spec_error():
    spec = "plain"
    for _ in range(100_000):
        spec = [spec]
    with pytest.raises(SpecError, match="nested too deeply"):
        build(spec)


def test_what_cannot_be_loaded_is_pointed_at(installed, plugin, found):
    installed.append(found("broken", plugin(modules={"gone": "no_such_module:Gone"})))
    with pytest.raises(
        PluginError, match=r"No module named 'no_such_module'.*\n  gone\(\)\n  \^{4}"
    ):
        build("gone()")


def test_nothing_is_evaluated(monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    for attack in (
        f"__import__('pathlib').Path({str(mark)!r}).touch()",
        f"rate(__import__('pathlib').Path({str(mark)!r}).touch())",
        f"[x for x in [open({str(mark)!r}, 'w')]]",
        f"open({str(mark)!r}, 'w')",
        f"rate(open({str(mark)!r}, 'w'))",
        "fractions:Fraction(1)",
        "fractions.Fraction(1)",
    ):
        with pytest.raises(ProjcoreError):
            build(attack)
        with pytest.raises(ProjcoreError):
            build({attack: {}})
    assert not mark.exists()


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="plainrte(),;:[]{}'\"=-*.\n\\ 01é", max_size=30))
def test_any_text_is_a_module_or_our_error(text):
    with contextlib.suppress(ProjcoreError):
        assert isinstance(build(text), Module)


numbers = st.integers() | st.floats(allow_nan=False) | st.booleans()
leaves = numbers | st.none() | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def canonical(value):
    """A value as specs hold it: sequences of numbers and None are tuples."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    items = [canonical(item) for item in value]
    return tuple(items) if is_numeric(items) else type(value)(items)


def is_numeric(value):
    return len(value) > 0 and all(
        item is None
        or isinstance(item, (int, float))
        or (isinstance(item, (list, tuple)) and is_numeric(item))
        for item in value
    )


@settings(max_examples=100, deadline=None)
@given(values)
def test_every_value_survives_the_expression(value):
    module = build(expression(Anything(extra=value)))
    assert module.arguments.get("extra") == canonical(value)
    assert expression(module) == expression(Anything(extra=value))


@settings(max_examples=100, deadline=None)
@given(values)
def test_every_value_survives_json(value):
    spec = to_spec(Anything(value))
    module = build(json.loads(json.dumps(spec)))
    assert to_spec(module) == spec


def test_not_a_number_is_printed_and_read():
    assert math.isnan(build(expression(Anything(math.nan))).arguments["value"])


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (torch.float64, "'float64'"),
        (torch.device("cpu"), "'cpu'"),
        (torch.tensor(0.5), "0.5"),
        (torch.tensor(3), "3"),
    ],
)
def test_torchs_values_are_printed_plainly(value, printed):
    assert expression(Anything(value)) == f"anything(value={printed})"
    assert build(to_spec(Anything(value))).arguments["value"] == eval(printed)


def test_numpys_numbers_are_printed_plainly():
    numpy = pytest.importorskip("numpy")
    assert expression(Anything(numpy.float64(0.5))) == "anything(value=0.5)"


@pytest.mark.parametrize(
    ("value", "what"),
    [(torch.optim.SGD, "a class"), (object(), "of type object"), (torch.ones(2), "of type Tensor")],
)
def test_what_a_spec_cannot_hold_is_refused_with_a_sentence(value, what):
    for write in (expression, to_spec):
        with pytest.raises(SpecError, match=rf"Anything\(value=.*the value is {what}"):
            write(Anything([value]))
    assert repr(value) in expression(Anything([value]), strict=False)


def test_an_unregistered_class_is_printed_by_its_name():
    assert expression(Unregistered()) == "Unregistered()"
    with pytest.raises(UnknownNameError):
        build(expression(Unregistered()))


def test_a_shared_name_is_printed_qualified(installed, plugin, found):
    installed.append(found("other", plugin(modules={"rate": "other:Rate"})))
    registry.manager.discover(again=True)
    assert expression(build("parts:rate(0.5); plain")) == "parts:rate(0.5); plain()"
    assert to_spec(build("parts:rate(0.5)")) == {"parts:rate": 0.5}


def test_the_public_name_builds():
    assert type(projcore.build("plain")) is Plain
