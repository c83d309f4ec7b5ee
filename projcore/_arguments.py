"""Arguments of the constructors of modules and choices: kept, converted, and checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from projcore._advice import misplaced_argument, unknown_argument
from projcore._bases import AnyModule, is_module
from projcore.errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractError,
    NeedsError,
    ProjcoreError,
)
from projcore.values import plain

if TYPE_CHECKING:
    from typing_extensions import Self

    from projcore.core.module import Module
    from projcore.core.projection import ProjectionBase


_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class Remembering:
    """Keeps the arguments of its constructor, and converts them to plain values; see `plain`."""

    _signature: ClassVar[inspect.Signature]  # of __init__; read once, since that is slow
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _with_plain_arguments(cls.__init__)  # type: ignore[method-assign]
        cls._signature = inspect.signature(cls.__init__)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        _refuse_habits(cls, args, kwargs)
        try:
            bound = cls._signature.bind_partial(self, *args, **kwargs)
        except TypeError:
            bound = None  # __init__ raises Python's own error, which names the argument
        given = dict(list(bound.arguments.items())[1:]) if bound else {}
        self._arguments = {name: plain(value, keep=True) for name, value in given.items()}
        _refuse_modules(cls, self._arguments)
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that differ from their defaults, by name, in its order."""
        parameters = self._signature.parameters
        given = {}
        for name, value in self._arguments.items():
            default = parameters[name].default
            if type(value) is not type(default) or value != default:
                given[name] = value
        return given


class Constructed(Remembering, AnyModule):
    """The same, for modules."""


def _with_plain_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Converts numbers and lists of other libraries before they reach a constructor."""

    @functools.wraps(init)
    def with_plain_arguments(self: object, *args: Any, **kwargs: Any) -> None:
        init(
            self,
            *(plain(value, keep=True) for value in args),
            **{name: plain(value, keep=True) for name, value in kwargs.items()},
        )

    return with_plain_arguments


def _refuse_habits(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises for unknown keywords, and for arguments as in torch.optim."""
    parameters = list(cls._signature.parameters.values())[1:]  # type: ignore[attr-defined]
    variadic = {parameter.kind for parameter in parameters} & _VARIADIC
    if variadic:
        return
    message = misplaced_argument(cls.__name__, cls, args, kwargs, parameters)
    names = {parameter.name for parameter in parameters}
    unknown = next((keyword for keyword in kwargs if keyword not in names), None)
    if message is None and unknown is not None:
        message = unknown_argument(cls.__name__, cls, unknown, kwargs, parameters)
    if message is not None:
        raise ArgumentTypeError(message)


def _refuse_modules(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raises for modules in place of a flag or a number, as when brackets were omitted."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    for name, value in arguments.items():
        default = parameters[name].default
        if not isinstance(default, (bool, int, float)) or not _holds_modules(value):
            continue
        what = "True or False" if isinstance(default, bool) else "a number"
        fix = f"Pass {name}={default!r}, or leave it out."
        if "modules" in arguments:
            first = arguments["modules"]
            listed = [*(first if isinstance(first, (list, tuple)) else [first]), value]
            fix = f"Pass several modules as a list: {cls.__name__}({listed})."
        raise ArgumentTypeError(f"{cls.__name__} was given {name}={value!r}. It is {what}. {fix}")


def _holds_modules(value: object) -> bool:
    """Whether a value is a module, a spec such as ``"adam()"``, or a list with one in it."""
    if isinstance(value, str):
        return value.rstrip().endswith(")")
    if isinstance(value, (list, tuple)):
        return any(map(_holds_modules, value))
    return is_module(value) or (isinstance(value, type) and issubclass(value, AnyModule))


def check_settings(module: Module, settings: Mapping[str, Any]) -> None:
    """Checks the settings of a module; errors of other classes become ours."""
    try:
        module.check(settings)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ProjcoreError):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ArgumentTypeError(
            f"{type(module).__name__}({given}) cannot be: {type(error).__name__}: {error}."
        ) from error


def check_projection(projection: ProjectionBase) -> None:
    """Raises unless a projection provides the facts that modules inside need."""
    who, delivered = type(projection).__name__, {"loss"}
    if projection.overrides("targets") and not projection.overrides("combine"):
        raise ContractError(
            f"{type(projection).__name__} overrides targets, but not combine. A step that does not "
            "write parameters itself, as inside another projection, would not change the targets. "
            "Override combine so that it updates the targets, and returns the update of the "
            "parameters."
        )
    if projection.project_params:
        delivered |= {"params", "closure"}
    if projection.project_grad:
        delivered |= {"grads"}
    elif not projection.project_update:
        raise ArgumentError(
            f"{who}(project_update=False, project_grad=False) projects nothing. Modules inside "
            "start from the update or from the gradient. Pass one as True."
        )
    if projection.batch_dims and projection.scope != "all":
        raise ContractError(
            f"{who} declares batch_dims = {projection.batch_dims} and scope = "
            f"{projection.scope!r}, which is for one tensor from each. Batches are made of "
            'several. Declare scope = "all".'
        )
    for module in projection.chain.modules:
        missing = sorted(module.total_needs - delivered)
        if missing:
            flags = {
                "project_grad=True" if need == "grads" else "project_params=True"
                for need in missing
            }
            raise NeedsError(
                f"{who}(project_params={projection.project_params}, "
                f"project_grad={projection.project_grad}) was given {module}, which needs "
                f"{missing}. Pass {' and '.join(sorted(flags))}."
            )


def not_a_module(value: object) -> ArgumentTypeError:
    """Returns the error for a value that is not a module, with what to pass instead."""
    shown = repr(value)
    if isinstance(value, torch.optim.Optimizer):  # its repr has a line for each setting
        shown = f"An optimizer of class {type(value).__name__}"
    if isinstance(value, Tensor):
        shown = f"A tensor of shape {tuple(value.shape)}"
    return ArgumentTypeError(
        f"{shown} was given as a module. A module is a Module, a spec such as 'adam()', or a "
        f"list of these.{_instead(value)}"
    )


def _instead(value: object) -> str:
    """Returns advice for a class, an optimizer or a number, or an empty string."""
    cls = value if isinstance(value, type) else type(value)
    if issubclass(cls, (int, float)):
        return f" A learning rate is passed by name: lr={value!r}."
    if issubclass(cls, LRScheduler):
        return f" A scheduler is given the optimizer: {cls.__name__}(optimizer, ...)."
    if is_module(getattr(value, "module", None)):
        return " Pass the module of that optimizer: optimizer.module."
    if not issubclass(cls, torch.optim.Optimizer):
        return f" Did you mean {cls.__name__}()?" if value is cls else ""
    if cls.__module__.startswith("projcore."):
        return " Pass the modules that it is made of."
    lr = inspect.signature(cls).parameters.get("lr")
    arguments = (
        repr(cls.__name__) if getattr(torch.optim, cls.__name__, None) is cls else cls.__name__
    )
    if lr is not None:
        rate = getattr(value, "defaults", {}).get("lr", lr.default)
        known = isinstance(rate, (int, float, torch.Tensor))
        arguments += f", lr={float(rate) if known else 1e-3}"
    return f" To run an optimizer of torch, pass TorchOptim({arguments}), from projcore.modules."
