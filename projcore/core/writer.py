"""Writing parameters: by subtracting a scaled update, or by kernels that also compute it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class Blend(NamedTuple):
    """The factors of an update `u`: a parameter `p` becomes ``p - scale * u - decay * p``."""

    scale: float = 1.0
    decay: float = 0.0


class Write(NamedTuple):
    """One in-place operation on parameters.

    Attributes:
        target: A parameter that it writes, or a view of it.
        run: Runs it. It may fail before it writes; all writes are in one operation, the last.
        written: Whether it has written. None if the version of the target shows that, as after
            all in-place operations of torch except the fused optimizers.
    """

    target: Tensor
    run: Callable[[], object]
    written: Callable[[], bool] | None = None


class Writer(ABC):
    """Writes the parameters of a transform, in place of `Transform.apply`.

    It is made once, for the tensors that it is to write, and called in every step. So it decides
    when it is made what is known before tensors have values (kernel, dtype, layout), and may cache
    lookups: `states` is the same list of the same dicts as long as it is used, while `targets` may
    be other views of the same storage. It writes into the tensors of the state in place, and
    replaces them only in its first call.

    Attributes:
        kernel: Its name in `Optimizer.describe`.
        repeatable: Whether it may be called again before the operations that it returned have run.
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
        """Returns operations that write the parameters, without writing any itself.

        For ``u``, the result of `apply`, they turn each ``p`` of `targets` into
        ``p - scale * u - decay * p``, by its `Blend`. The other arguments are those of `apply`.
        """
