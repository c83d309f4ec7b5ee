"""The printed expression builds the component again."""

from __future__ import annotations

from collections.abc import Iterator

import projcore
from projcore import Module, registry
from projcore.testing.law import NotApplicable, ensure, ensure_equal, law
from projcore.testing.parts import Scale
from projcore.testing.problem import make_problem
from projcore.testing.run import comes_last, train
from projcore.testing.subject import Subject, as_subjects


@law()
def rebuild(subject: Subject) -> None:
    """``projcore.build(str(module))`` rebuilds the module: it prints and behaves the same."""
    if subject.spec is None:
        raise NotApplicable("it is not registered, so no spec can name it")
    modules = subject.chain()
    original = subject.pick(modules)
    if subject.kind == "projection":
        known = next(_known_modules(), None)
        if known is None:
            raise NotApplicable("no module is registered to stand inside it")
        original = subject.around(known)
    text = str(original)
    again = projcore.build(text)
    if len(again.children) == 1 and type(again) is not type(original):
        (again,) = again.children.values()
    fix = "Take every argument of the constructor as it is, and change none of them there."
    ensure(type(again) is type(original), f"{text!r} builds a {type(again).__name__}.", fix)
    ensure(str(again) == text, f"{text!r} builds {str(again)!r}.", fix)
    if comes_last(original):
        chains = [[original], [again]]
    else:
        chains = [[original, Scale()], [again, Scale()]]
    one, other = (train(make_problem(), chain, 2) for chain in chains)
    ensure_equal(other, one, f"What {text!r} builds does something else", fix)


def _known_modules() -> Iterator[Module]:
    """Yields registered modules that can stand anywhere."""
    for component in registry.components("module"):
        for subject in as_subjects(component):
            module = subject.build()
            if module.total_scope == "element" and not module.total_needs:
                yield module
