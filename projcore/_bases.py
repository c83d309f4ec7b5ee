"""Bases of modules, chains, projections and choices, for where torch must not be imported.

Their classes import torch. Specs and the registry stand below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from projcore.choice import Choice
    from projcore.core.chain import Chain
    from projcore.core.module import Module
    from projcore.core.projection import ProjectionBase


class AnyModule:
    """Base of `projcore.Module`."""


class AnyChain(AnyModule):
    """Base of `projcore.Chain`."""


class AnyProjection(AnyModule):
    """Base of `projcore.ProjectionBase`."""


class AnyChoice:
    """Base of `projcore.Choice`."""


def is_module(value: object) -> TypeGuard[Module]:
    """Whether a value is a module."""
    return isinstance(value, AnyModule)


def is_chain(value: object) -> TypeGuard[Chain]:
    """Whether a value is a chain."""
    return isinstance(value, AnyChain)


def is_choice(value: object) -> TypeGuard[Choice]:
    """Whether a value is a choice."""
    return isinstance(value, AnyChoice)


def is_projection(value: object) -> TypeGuard[ProjectionBase]:
    """Whether a value is a projection."""
    return isinstance(value, AnyProjection)
