"""Advice for arguments as in torch.optim: ``Adam(lr=1e-3)``, ``AdamW(params)``."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping, Sequence
from inspect import Parameter
from typing import Any

from projcore import registry
from projcore._bases import AnyChoice
from projcore.errors import suggest

_KERNELS = "The fastest kernel that gives the same result is chosen for each tensor."
HABITS = {
    "lr": "The learning rate belongs to the optimizer, or to the module LR.",
    "weight_decay": "Weight decay is a separate module: before this one it is added to the "
    "gradient, as in torch.optim.Adam; after it, it is decoupled, as in torch.optim.AdamW.",
    "momentum": "Momentum is a separate module.",
    "maximize": "To maximize, negate the gradient.",
    "fused": _KERNELS,
    "foreach": _KERNELS,
    "params": "Parameters are given to the optimizer, not to its modules.",
}
"""Arguments of torch's optimizers that modules may lack, and where they belong."""

_BEFORE = {"maximize": "Scale", "weight_decay": "WeightDecay", "momentum": "HeavyBall"}


def unknown_argument(
    name: str, cls: type, keyword: str, given: Mapping[str, Any], parameters: Sequence[Parameter]
) -> str:
    """Returns the message for a keyword that a component has no parameter for.

    Args:
        name: The name in the call: that of its class, or its name in a spec.
        cls: The class.
        keyword: The keyword.
        given: All keywords, with their values.
        parameters: Its parameters.
    """
    names = [parameter.name for parameter in parameters]
    start = f"{name} has no parameter {keyword!r}."
    if "options" in names and keyword in given:
        return f"{start} Pass options={{{keyword!r}: {given[keyword]!r}}}."
    if keyword in HABITS:
        return f"{start} {HABITS[keyword]} Write {_line(name, cls, given, parameters)}."
    return f"{start}{suggest(str(keyword), names)} Its parameters: {', '.join(names) or 'none'}."


def misplaced_argument(
    name: str,
    cls: type,
    positional: Sequence[Any],
    given: Mapping[str, Any],
    parameters: Sequence[Parameter],
) -> str | None:
    """Returns the message for a model or a learning rate as the first argument, as in torch.

    A number is taken for a learning rate if the first parameter is a pair, such as ``betas``, or
    torch has an optimizer of that name. None if the first argument is neither.
    """
    if not positional or not parameters or parameters[0].name == "modules":
        return None
    (first, *others), own = positional, parameters[0]
    names = [parameter.name for parameter in parameters]
    if _is_model(first):
        start = f"{name} was given parameters of a model. {HABITS['params']}"
        rate = [others.pop(0)] if others and _is_number(others[0]) else []
    elif _is_number(first) and (isinstance(own.default, tuple) or _has_rate_in_torch(cls, own)):
        start = (
            f"{name}({first!r}) was given a number as its first argument, where torch.optim has "
            f"the learning rate and {name} has {own.name}. To set {own.name}, pass it by name. "
            f"{HABITS['lr']}"
        )
        rate = [first]
    else:
        return None
    given = {
        **dict(zip(["lr"], rate, strict=False)),
        **dict(zip(names, others, strict=False)),
        **given,
    }
    return f"{start} Write {_line(name, cls, given, parameters)}."


def _line(name: str, cls: type, given: Mapping[str, Any], parameters: Sequence[Parameter]) -> str:
    """Returns the optimizer, or the spec, that corresponds to arguments for torch's.

    An ellipsis stands for required arguments that were not given.

    Example:
        >>> betas, eps = (Parameter(name, Parameter.KEYWORD_ONLY, default=0) for name in ("b", "e"))
        >>> _line("Adam", object, {"lr": 0.1, "fused": True, "e": 1e-6}, [betas, eps])
        'Optimizer(model, Adam(e=1e-06), lr=0.1)'
        >>> _line("adam", object, {"weight_decay": 0.01}, [betas, eps])
        'weight_decay(0.01); adam(); lr(0.001)'
    """
    is_class = name[0].isupper()
    names = [parameter.name for parameter in parameters]
    foreign = {"lr": 1e-3, **given}
    own = {key: foreign.pop(key) for key in names if key in foreign and key in given}
    modules = [
        f"{module if is_class else _spec_name(module)}"
        f"({-1.0 if key == 'maximize' else foreign[key]!r})"
        for key, module in _BEFORE.items()
        if foreign.get(key)
    ]
    missing = any(each.default is each.empty and each.name not in own for each in parameters)
    arguments = ["..."] * missing + [f"{key}={value!r}" for key, value in own.items()]
    call = f"{name}({', '.join(arguments)})"
    if issubclass(cls, AnyChoice) and hasattr(cls, "host"):
        host, parameter = cls.host
        owner = registry.lookup(registry.IN_SPECS, host).attribute if is_class else host
        call = f"{owner}(..., {parameter}={call})"
    modules.append(call)
    rate = [] if "lr" in names else [foreign["lr"]]
    if is_class:
        return f"Optimizer({', '.join(['model', *modules, *(f'lr={value!r}' for value in rate)])})"
    return "; ".join([*modules, *(f"lr({value!r})" for value in rate)])


def _spec_name(cls: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls).lower()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _has_rate_in_torch(cls: type, first: Parameter) -> bool:
    """Whether torch has an optimizer of that name, and ours begins with another parameter."""
    return first.name != "lr" and hasattr(sys.modules["torch"].optim, cls.__name__)


def _is_model(value: object) -> bool:
    """Whether a value is a model, or its parameters, or a list of groups of them."""
    nn = sys.modules["torch"].nn
    if isinstance(value, (list, tuple)):
        return any(
            "params" in each if isinstance(each, dict) else _is_model(each) for each in value
        )
    return isinstance(value, (nn.Module, nn.Parameter, Generator))
