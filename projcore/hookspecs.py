"""The hooks a plugin may implement, each in a function of that name marked with `hookimpl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from projcore.plugin import hookspec

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction


class Register(Protocol):
    """Registers one component.

    Args:
        name: Its name in specs: lower-case letters, digits and ``_``, a letter first.
        target: ``"package.module:Name"``; imported when the component is first used.
        summary: A one-sentence description.
        paper: Its source, for example ``"arXiv:2403.03507"``.
        tags: Search terms, and tags that promise laws.
        aliases: Other names; the name of another component takes precedence over an alias.
        example: Keyword arguments that build a working instance (for a projection, except for
            ``modules``), or a list of these; the conformance checks run on them.
    """

    def __call__(
        self,
        name: str,
        target: str,
        *,
        summary: str,
        paper: str | None = None,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        example: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None: ...


@hookspec(historic=True)
def projcore_register_projections(register: Register) -> None:
    """Registers projections: classes derived from `projcore.ProjectionBase`."""


@hookspec(historic=True)
def projcore_register_modules(register: Register) -> None:
    """Registers modules: classes derived from `projcore.Module` that are not projections."""


@hookspec(historic=True)
def projcore_register_choices(register: Register) -> None:
    """Registers choices: classes derived from `projcore.Choice`, such as a basis of a subspace."""


@hookspec(historic=True)
def projcore_register_recipes(register: Register) -> None:
    """Registers recipes: functions that make an optimizer."""


@hookspec
def projcore_add_commands(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds commands to ``projcore``.

    Each is made by ``subparsers.add_parser(name, help=...)`` and calls
    ``set_defaults(run=function)``: the function takes the parsed arguments and returns the exit
    code. It is also called for ``projcore --help``, so slow imports belong in `run`.
    """


@hookspec
def projcore_doctor() -> list[str]:  # type: ignore[empty-body]
    """Returns problems in the plugin's environment, one sentence each, with a suggested fix."""
