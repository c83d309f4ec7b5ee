"""Inf and NaN are found, whatever tensors they are in, and errors name the parameter."""

import pickle

import pytest
import torch

from projcore import Optimizer, Transform, first_nonfinite
from projcore.errors import NonFiniteError, StepError
from projcore.projections import VectorProjection

BAD = [float("inf"), float("-inf"), float("nan")]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_it_is_found(dtype, bad):
    tensors = [torch.ones(shape, dtype=dtype) for shape in [(), (0,), (3, 2), (2, 2)]]
    assert first_nonfinite(tensors) is None
    tensors[2][1, 1] = bad
    assert first_nonfinite(tensors) == 2
    tensors[0].fill_(bad)
    assert first_nonfinite(tensors) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_numbers_are_finite(dtype):
    """Their squares, and their sums, are not."""
    assert first_nonfinite([torch.full((5,), torch.finfo(dtype).max / 2, dtype=dtype)]) is None


def test_tensors_of_several_dtypes():
    tensors = [torch.ones(2, dtype=dtype) for dtype in DTYPES]
    assert first_nonfinite(tensors) is None
    tensors[4][0] = complex(0.0, float("nan"))
    assert first_nonfinite(tensors) == 4


def test_none_in_nothing():
    assert first_nonfinite([]) is None
    assert first_nonfinite([torch.ones(2, device="meta")]) is None


class Refuses(Transform):
    """Raises where a number is not finite."""

    def apply(self, tensors, params, grads, loss, states, settings):
        if first_nonfinite(tensors) is not None:
            raise NonFiniteError("Refuses was given Inf or NaN.")
        return tensors


@pytest.mark.parametrize("module", [Refuses(), VectorProjection([Refuses()])])
@pytest.mark.parametrize("named", [False, True])
def test_the_parameter_is_named(module, named):
    """Whatever module it is that cannot go on, and inside of what: the gradient tells."""
    model = torch.nn.Linear(3, 2)
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = Optimizer(parameters, module, "lr(0.1)")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.bias.grad[1] = float("nan")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    name = "'bias'" if named else "1"
    with pytest.raises(StepError, match=rf"gradient of parameter {name}, of shape \(2,\), has Inf"):
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NonFiniteError("no", skip=True)))
    assert error.skip
    assert str(error) == "no"
