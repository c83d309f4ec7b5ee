"""Every registered component is built from its example, printed, and built again."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from projcore import registry
from projcore.spec import build, expression, to_spec


def examples():
    for component in [*registry.components("projection"), *registry.components("module")]:
        given = component.example
        for example in [given] if isinstance(given, Mapping) else given or []:
            yield pytest.param(component, dict(example), id=f"{component.name}-{example}")


@pytest.mark.parametrize(("component", "example"), [*examples()])
def test_it_survives_both_forms(component, example):
    inner = {"modules": ["sign", {"lr": 0.5}]} if component.kind == "projection" else {}
    module = registry.load_component(component)(**inner, **example)
    text = expression(module)
    assert str(module) == text
    assert expression(build(text)) == text
    spec = json.loads(json.dumps(to_spec(module)))
    assert to_spec(build(spec)) == spec
    assert expression(build({component.name: {**inner, **example}})) == expression(build(text))
    assert registry.name_of(type(module)) == component.name


def test_every_component_has_an_example():
    components = [*registry.components("projection"), *registry.components("module")]
    assert {component.name for component in components} == {
        parameter.values[0].name for parameter in examples()
    }
