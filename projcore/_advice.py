"""The line that works, for habits from torch.optim: ``Adam(lr=1e-3)``, ``AdamW(params)``."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping, Sequence
from inspect import Parameter
from typing import Any

from projcore.errors import suggest

_KERNELS = "The fastest kernel that gives the same result is chosen for each tensor."
HABITS = {
    "lr": "The learning rate is a module of its own, which comes last.",
    "weight_decay": "Weight decay is a module of its own: before this one it is added to the "
    "gradient, as in torch.optim.Adam; after it, it is decoupled, as in torch.optim.AdamW.",
    "momentum": "Momentum is a module of its own.",
    "maximize": "The gradient is negated to maximize.",
    "fused": _KERNELS,
    "foreach": _KERNELS,
    "params": "Parameters are given to the optimizer, not to its modules.",
}
"""Arguments of torch's optimizers that modules need not have, and where they belong."""

_BEFORE = {"maximize": "Scale", "weight_decay": "WeightDecay", "momentum": "HeavyBall"}


def unknown_argument(
    name: str, keyword: str, given: Mapping[str, Any], parameters: Sequence[Parameter]
) -> str:
    """Returns the message for a keyword that a component has no parameter for.

    Args:
        name: The name in the call: that of its class, or its name in a spec.
        keyword: The keyword.
        given: All keywords, with their values.
        parameters: Its parameters.
    """
    names = [parameter.name for parameter in parameters]
    start = f"{name} has no parameter {keyword!r}."
    if "options" in names and keyword in given:
        return f"{start} Pass options={{{keyword!r}: {given[keyword]!r}}}."
    if keyword in HABITS:
        return f"{start} {HABITS[keyword]} Write {_line(name, given, names)}."
    return f"{start}{suggest(str(keyword), names)} Its parameters: {', '.join(names) or 'none'}."


def misplaced_argument(
    name: str,
    cls: type,
    positional: Sequence[Any],
    given: Mapping[str, Any],
    parameters: Sequence[Parameter],
) -> str | None:
    """Returns the message for a model or a learning rate in the first place, where torch has them.

    A number is one where the first parameter is a pair, as ``betas``, or torch has an optimizer of
    that name. None if the first argument is neither.
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
            f"{name}({first!r}) was given a number in the first place, where torch.optim has the "
            f"learning rate and {name} has {own.name}. If that was meant, name it. {HABITS['lr']}"
        )
        rate = [first]
    else:
        return None
    given = {
        **dict(zip(["lr"], rate, strict=False)),
        **dict(zip(names, others, strict=False)),
        **given,
    }
    return f"{start} Write {_line(name, given, names)}."


def _line(name: str, given: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the optimizer, or the spec, that is meant by arguments for one of torch.

    Example:
        >>> _line("Adam", {"lr": 0.1, "fused": True, "eps": 1e-6}, ["betas", "eps"])
        'Optimizer(model, Adam(eps=1e-06), lr=0.1)'
        >>> _line("adam", {"weight_decay": 0.01}, ["betas", "eps"])
        'weight_decay(0.01); adam(); lr(0.001)'
    """
    is_class = name[0].isupper()
    foreign = {"lr": 1e-3, **given}
    own = {key: foreign.pop(key) for key in names if key in foreign and key in given}
    modules = [
        f"{cls if is_class else _spec_name(cls)}({-1.0 if key == 'maximize' else foreign[key]!r})"
        for key, cls in _BEFORE.items()
        if foreign.get(key)
    ]
    modules.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in own.items())})")
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
