"""Writing parameters: by subtracting a scaled update, or by kernels that make the update, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class Blend(NamedTuple):
    """How a parameter `p` takes an update `u`: it becomes ``p - scale * u - decay * p``."""

    scale: float = 1.0
    decay: float = 0.0


class Write(NamedTuple):
    """One operation in place on parameters.

    Attributes:
        target: A parameter that it writes, or a view of it.
        run: Does it. What it computes before may fail; what it writes, it writes at once, last.
        written: Whether it has written. None where the version of the target tells, as it does
            after every operation in place of torch but the fused optimizers.
    """

    target: Tensor
    run: Callable[[], object]
    written: Callable[[], bool] | None = None


class Writer(ABC):
    """Writes the parameters of a transform itself, in place of `Transform.apply`.

    It is made once, for the tensors that a plan has it write, and called in every step. So what is
    known before there are values (kernel, dtype, layout) is decided when it is made, and what it
    would look up in every step it may keep: `states` is the same list of the same dicts as long as
    it is used, while `targets` may be other views of the same memory. It writes into the tensors
    of the state, and replaces them in its first call only.

    Attributes:
        kernel: What `Optimizer.describe` calls it.
        repeatable: Whether it may be called again until the operations that it returned have run.
    """

    kernel: ClassVar[str]
    repeatable: bool = True

    @abstractmethod
    def __call__(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[dict[str, Any]],
        settings: list[Any],
    ) -> list[Write]:
        """Returns operations that write the parameters; it writes none itself.

        With ``u`` what `apply` would return, they make each of `targets`, ``p``, to
        ``p - scale * u - decay * p``, by its `Blend`. `tensors` and what follows are as for
        `apply`.
        """
