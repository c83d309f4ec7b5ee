"""Calls of the methods that authors of modules override."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from projcore._trees import Keeper, find_keeper
from projcore.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor

RENAMED = {  # former names of class attributes and methods, and their replacements
    "affine": "coefficients, which returns a list and not None",
    "final": "targets, or Observer",
    "memory_inside": "entry_inside",
    "observes": "Observer, and its method observe",
    "policy": "on_refresh",
    "prepare": "plan(planner, space)",
    "receive": "adjust_update",
    "remember": "create_state",
    "single_pass": "writer(targets)",
    "spends": "nothing, as the plan decides it",
    "writes": "writer(targets)",
}
HOOKS = (
    "init",
    "apply",
    "refresh",
    "project",
    "combine",
    "adjust_update",
    "targets",
    "writer",
    "materialize",
)


class Hooks:
    """Knows which methods a class overrides, and what arguments they name."""

    _named: ClassVar[dict[str, frozenset[str]]]  # of each hook, the arguments that it names
    _overridden: ClassVar[frozenset[str]]  # the hooks that are not the kernel's own

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in RENAMED.keys() & vars(cls).keys():
            raise ContractError(
                f"{cls.__name__} defines {name!r}, which is not part of the contract any more, so "
                f"it would be ignored. In its place there is {RENAMED[name]}. Rename or remove it."
            )
        hooks = [hook for hook in HOOKS if hasattr(cls, hook)]
        cls._named = {
            hook: frozenset(inspect.signature(getattr(cls, hook)).parameters) for hook in hooks
        }
        for name in ("index", "key"):
            if name in cls._named.get("init", ()):
                raise ContractError(
                    f"{cls.__name__}.init names the argument {name!r}, which it is not given any "
                    "more. In its place there is 'tensor_id', a number that follows from the name "
                    "of the parameter (Space.tensor_ids). Rename it."
                )
        cls._overridden = frozenset(hook for hook in hooks if _is_overridden(cls, hook))

    def named(self, hook: str, **extras: Any) -> dict[str, Any]:
        """Returns those of the extra arguments that a hook names in its signature."""
        return {name: value for name, value in extras.items() if name in self._named[hook]}

    def overrides(self, hook: str) -> bool:
        """Whether it has a method of its own in place of the one that the kernel's class has."""
        return hook in self._overridden


class ProjectionHooks(Hooks):
    """Properties that follow from the `refresh` and the `combine` of a projection.

    Attributes:
        asks_inside: Whether it reads settings by `keeper_inside`, which must then be those of the
            step.
    """

    asks_inside: bool = False

    def keeper_inside(
        self,
        kind: str,
        state: Mapping[str, Any],
        settings: Mapping[str, Any],
        entry: Tensor | None = None,
    ) -> Keeper | None:
        """Returns the first module inside, in its own space, that keeps an entry of that kind.

        So a projection can read the betas of this step and the moments of an Adam inside. For scope
        ``"tensor"``; `state` and `settings` are the projection's own of one tensor, as its hooks
        get them. Modules of projections further inside are ignored. Given an `entry`, the module
        that keeps that one is returned.
        """
        projection: Any = self
        node = state.get("modules", {})
        found = find_keeper(projection.chain, node, kind, entry, "modules")
        if found is None:
            return None
        module, entries, path = found
        live = {n: settings.get(f"{path}/{n}", value) for n, value in module.defaults.items()}
        return Keeper(module, entries, live)

    @property
    def learns(self) -> bool:
        """Whether its map, or the residual that it keeps, depends on update or gradient.

        Then a tensor without a gradient must not enter. Its `refresh` says so by naming
        ``tensors`` or ``grads``. Where there is none, a `combine` of its own may keep a residual.
        """
        if not self.overrides("refresh"):
            return self.overrides("combine")
        return not self._named["refresh"].isdisjoint({"tensors", "grads", "args"})

    def call_refresh(
        self, tensors: Any, params: Any, grads: Any, loss: Any, states: Any, settings: Any
    ) -> Any:
        """Calls `refresh` with those of its arguments that it names."""
        projection: Any = self
        if "args" in self._named["refresh"]:
            return projection.refresh(tensors, params, grads, loss, states, settings)
        facts: dict[str, Any] = {"params": params, "grads": grads, "loss": loss}
        named = self.named("refresh", tensors=tensors, **facts, states=states, settings=settings)
        return projection.refresh(**named)


def _is_overridden(cls: type, hook: str) -> bool:
    """Whether a class has another method than the first of its bases that has one."""
    declared = next(vars(base)[hook] for base in reversed(cls.__mro__) if hook in vars(base))
    return getattr(cls, hook) is not declared
