"""The role of each parameter, from its model, or from its name and shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Role = Literal[
    "vector",
    "matrix",
    "stack",
    "convolution",
    "depthwise",
    "embedding",
    "head",
    "last",
    "other",
]
ROLES: tuple[str, ...] = get_args(Role)

_EMBEDDING = re.compile(
    r".*embeddings?(_table)?|(.*_)?emb(ed|eds)?|embed_(tokens|positions|in)|w[tp]e"
    r"|pe|(.*_)?pos(ition)?(al)?_enc(odings?)?"
)
_HEAD = re.compile(r"(.*_)?head|embed_out")
# The children of torch's wrappers: compiled modules, activation checkpoints, FSDP.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_ELEMENTWISE = {"log", "bias"}  # words of names such as A_log and relative_position_bias_table


@dataclass(frozen=True)
class Owner:
    """A module that holds a parameter, and the parameter's name there.

    Attributes:
        module: The module; for a parametrized tensor, the one that is parametrized.
        path: The module's name in the model.
        name: The tensor's name in the module.
    """

    module: nn.Module
    path: str
    name: str


@dataclass(frozen=True)
class Known:
    """Facts about one parameter of a model.

    Attributes:
        name: Its first name, as in ``model.named_parameters()``.
        types: Names of the classes of its owners, and of their bases.
        role: Its role; see `inspect_model`.
        transposed: Whether its shape is inputs by outputs, as that of an embedding, a transposed
            convolution, or the ``Conv1D`` of GPT-2.
    """

    name: str
    types: tuple[str, ...]
    role: Role
    transposed: bool = False


def inspect_model(model: nn.Module) -> dict[Tensor, Known]:
    """Returns the facts about each parameter of a model, in their order.

    A parameter that is shared by several modules has all of them as owners. Its role is the first
    of these that applies:

    ===============  ===========================================================================
    ``vector``       fewer than two of its sides are longer than 1
    ``embedding``    an owner is an `Embedding` or an `EmbeddingBag`, or is within what
                     ``get_input_embeddings()`` returns; or is of no class that torch has, and
                     its name says embedding
    ``head``         an owner is within what ``get_output_embeddings()`` returns, or is named head
    ``depthwise``    the weight of a convolution whose filters see one channel each
    ``convolution``  any other weight of a convolution
    ``other``        not the matrix of a linear map: of a normalization; named as a logarithm or
                     a bias; or held directly by a module that has layers inside, as ``A_log`` of a
                     state-space layer and tables of positions are, and not named weight
    ``stack``        three dimensions, the last two longer than 1: as many matrices as the first is
                     long
    ``last``         the last linear layer, taken for the output layer
    ``matrix``       all others
    ===============  ===========================================================================

    There is a ``last`` where nothing in the model is known to be its output layer (by the two marks
    of ``head``, or as a linear layer that shares an embedding's weight), and where other weights
    are left that are matrices, stacks or convolutions. It is never inside a repeated block: a
    module with layers inside that is an entry of a `ModuleList`, or an entry of a `Sequential`
    beside one with the same shapes.

    Args:
        model: The model, on any device.
    """
    owners = _owners(model)
    embeddings, heads = (
        _within(model, "get_input_embeddings"),
        _within(model, "get_output_embeddings"),
    )
    known: dict[Tensor, Known] = {}
    for name, parameter in model.named_parameters():
        found = owners[parameter]
        types = dict.fromkeys(cls.__name__ for owner in found for cls in type(owner.module).__mro__)
        role = _role(parameter, found, parameter in embeddings, parameter in heads)
        known[parameter] = Known(name, tuple(types), role, _is_transposed(parameter, found, role))
    last = _last(model, known, owners)
    if last is not None:
        known[last] = replace(known[last], role="last")
    return known


def role_of(name: str | None, tensor: Tensor) -> Role:
    """Returns the role of a parameter of an unknown model, from its name, if any, and shape.

    Names are compared by whole components: that of the tensor and that of the module that holds it,
    numbers and torch's wrappers left out. A parameter with three dimensions within a module named
    experts is a stack.
    """
    if is_lazy(tensor) or _is_vector(tensor):
        return "vector"
    parts = _parts(name or "")
    if _named(parts, _EMBEDDING):
        return "embedding"
    if _named(parts, _HEAD):
        return "head"
    if parts and _ELEMENTWISE & set(parts[-1].split("_")):
        return "other"
    role = _by_shape(tensor)
    return "convolution" if role == "stack" and "experts" not in parts else role


def facts_of(name: str | None, tensor: Tensor) -> Known:
    """Returns the facts about a parameter of an unknown model, without types."""
    role = role_of(name, tensor)
    kernel = tensor.ndim > 3 and tensor.shape[0] > 1  # of a convolution that embeds patches
    return Known(name or "", (), role, transposed=role == "embedding" and not kernel)


def _owners(model: nn.Module) -> dict[Tensor, list[Owner]]:
    owners: dict[Tensor, list[Owner]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append(_parametrized(model, module, path, name))
    return owners


def _parametrized(model: nn.Module, module: nn.Module, path: str, name: str) -> Owner:
    """Returns the owner; below ``parametrizations``, the module that has these."""
    outer, found, inner = f".{path}.".partition(".parametrizations.")
    if not found:
        return Owner(module, path, name)
    tensor = inner.split(".")[0] or name
    return Owner(model.get_submodule(outer[1:]), outer[1:], tensor)


def _within(model: nn.Module, method: str) -> set[Tensor]:
    """Returns the parameters of the layers that a method of the model's modules returns."""
    found: set[Tensor] = set()
    for module in model.modules():
        ask = getattr(module, method, None)
        try:
            layer = ask() if callable(ask) else None
        except (NotImplementedError, AttributeError, TypeError):
            continue  # not implemented, or an unrelated method of the same name
        if isinstance(layer, nn.Module):
            found.update(layer.parameters())
    return found


def _role(parameter: Tensor, owners: list[Owner], embedding: bool, head: bool) -> Role:
    if is_lazy(parameter) or _is_vector(parameter):
        return "vector"
    names = [(owner, [*_parts(owner.path), owner.name]) for owner in owners]
    if embedding or any(
        isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag))
        or (not _of_torch(owner.module) and _named(parts, _EMBEDDING))
        for owner, parts in names
    ):
        return "embedding"
    if head or any(_named(parts, _HEAD) for _, parts in names):
        return "head"
    if any(_is_convolution(owner.module, parameter) for owner in owners):
        return "depthwise" if _is_depthwise(parameter, owners) else "convolution"
    if not any(_is_linear(owner, parameter) for owner in owners):
        return "other"
    return _by_shape(parameter)


def _by_shape(tensor: Tensor) -> Role:
    """Returns the role of the weight of an unknown layer."""
    if tensor.ndim > 2 and tensor.shape[1] == 1:
        return "depthwise"
    if tensor.ndim == 3 and tensor.shape[2] > 1:
        return "stack"
    return "convolution" if tensor.ndim > 3 else "matrix"


def _is_vector(tensor: Tensor) -> bool:
    return sum(side != 1 for side in tensor.shape) < 2 or 0 in tensor.shape


def _is_convolution(module: nn.Module, parameter: Tensor) -> bool:
    if parameter.ndim < 3:
        return False
    return isinstance(module, nn.modules.conv._ConvNd) or hasattr(module, "kernel_size")


def _is_depthwise(parameter: Tensor, owners: list[Owner]) -> bool:
    groups = [getattr(owner.module, "groups", 2) for owner in owners]  # unknown: several
    return parameter.shape[1] == 1 and max(groups) > 1


def _is_transposed(parameter: Tensor, owners: list[Owner], role: Role) -> bool:
    """Whether the last dimension of a weight is that of outputs; or its second, of a convolution.

    Layers of others say so by ``is_transposed``, as experts of transformers do, or are its
    ``Conv1D``, with ``nx`` inputs and ``nf`` outputs.
    """
    modules = [owner.module for owner in owners]
    if any(isinstance(each, (nn.Embedding, nn.EmbeddingBag)) for each in modules):
        return True
    if any(isinstance(each, nn.modules.conv._ConvTransposeNd) for each in modules):
        return parameter.ndim > 2
    if any(isinstance(each, nn.Linear) or _is_convolution(each, parameter) for each in modules):
        return False
    sides = [(getattr(each, "nx", None), getattr(each, "nf", None)) for each in modules]
    told = any(getattr(each, "is_transposed", False) is True for each in modules)
    return role == "embedding" or told or tuple(parameter.shape) in sides


def _is_linear(owner: Owner, parameter: Tensor) -> bool:
    """Whether a tensor of two or more dimensions is a linear map, or a stack of them."""
    if isinstance(owner.module, (nn.Linear, nn.Bilinear)):
        return True
    if any("norm" in cls.__name__.lower() for cls in type(owner.module).__mro__):
        return False
    words = owner.name.lower().split("_")
    if _ELEMENTWISE & set(words):
        return False
    if "weight" in words or (parameter.ndim == 3 and 1 not in parameter.shape):
        return True
    return not any(True for child in owner.module.children() for _ in child.parameters())


def _of_torch(module: nn.Module) -> bool:
    """Whether a module is a layer of torch's, or a subclass of one."""
    return any(
        cls.__module__.startswith("torch.nn.modules.")
        for cls in type(module).__mro__
        if cls not in (nn.Module, nn.ParameterList, nn.ParameterDict)
    )


def _parts(name: str) -> list[str]:
    parts = name.lower().split(".")
    return [part for part in parts if part and not part.isdecimal() and part not in _WRAPPERS]


def _named(parts: list[str], pattern: re.Pattern[str]) -> bool:
    """Whether the tensor, or the module that holds it, has such a name."""
    return any(pattern.fullmatch(part) for part in parts[-2:])


def _last(
    model: nn.Module, known: dict[Tensor, Known], owners: dict[Tensor, list[Owner]]
) -> Tensor | None:
    """Returns the weight of the last linear layer, if it may be the output layer."""
    roles = [each.role for each in known.values()]
    tied = any(
        each.role == "embedding" and any(isinstance(o.module, nn.Linear) for o in owners[parameter])
        for parameter, each in known.items()
    )
    if "head" in roles or tied:
        return None
    last = None
    for parameter in known:
        if any(isinstance(o.module, nn.Linear) or _is_layer(o) for o in owners[parameter]):
            last = parameter if not is_lazy(parameter) and parameter.ndim == 2 else last
    maps = sum(role in ("matrix", "stack", "convolution") for role in roles)
    if last is None or known[last].role != "matrix" or maps == 1:
        return None
    return None if _in_block(model, owners[last][0].path) else last


def _is_layer(owner: Owner) -> bool:
    """Whether a module has a weight and at most vectors beside it, as a linear layer of others."""
    tensors = [p for p in owner.module.parameters() if is_lazy(p) or p.ndim > 1]
    return owner.name == "weight" and len(tensors) == 1 and not _of_torch(owner.module)


def _in_block(model: nn.Module, path: str) -> bool:
    module = _unwrapped(model)
    for name in path.split(".") if path else []:
        if name in _WRAPPERS:
            continue
        child = _unwrapped(module.get_submodule(name))
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and any(
            True for _ in child.children()
        ):
            others = (each for each in map(_unwrapped, module.children()) if each is not child)
            if isinstance(module, nn.ModuleList) or any(
                list(_shapes(each)) == list(_shapes(child)) for each in others
            ):
                return True
        module = child
    return False


def _unwrapped(module: nn.Module) -> nn.Module:
    """Returns the module that wrappers of torch hold."""
    for name, child in module.named_children():
        if name in _WRAPPERS:
            return _unwrapped(child)
    return module


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size | None]]:
    for name, parameter in module.named_parameters():
        yield name, None if is_lazy(parameter) else parameter.shape
