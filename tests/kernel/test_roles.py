"""Roles of parameters: from all owners of each in a model, or else from names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import Parameter
from torch.nn.utils import parametrizations, parametrize

from projcore import Optimizer, Rules, inspect_model, param_groups, role_of
from projcore.errors import ArgumentError


def roles(model: nn.Module) -> dict[str, str]:
    """The roles of all parameters but vectors."""
    found = {each.name: each.role for each in inspect_model(model).values()}
    assert list(found) == [name for name, _ in model.named_parameters()]
    return {name: role for name, role in found.items() if role != "vector"}


class Tied(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        layers = {"out": nn.Linear(4, 9, bias=False), "tok": nn.Embedding(9, 4)}
        for name in layers if first else reversed(layers):
            self.add_module(name, layers[name])
        self.hidden, self.more = nn.Linear(4, 4), nn.Linear(4, 4)
        layers["tok"].weight = layers["out"].weight


@pytest.mark.parametrize("first", [True, False])
def test_a_tied_weight_has_all_its_owners(first: bool) -> None:
    """The output layer is known by the tie, so the last linear layer is a hidden one."""
    name = "out.weight" if first else "tok.weight"
    assert roles(Tied(first)) == {
        name: "embedding",
        "hidden.weight": "matrix",
        "more.weight": "matrix",
    }
    groups = param_groups(Tied(first), {"type==Embedding": {}, "*": {}})
    assert [name for name, _ in groups[0]["params"]] == [name]


def test_a_shared_layer_has_all_its_names() -> None:
    layer = nn.Linear(4, 4)
    assert roles(nn.ModuleDict({"a": layer, "lm_head": layer})) == {"a.weight": "head"}


class Named(nn.Module):
    """A model that tells its embeddings and its output layer, inside a wrapper that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.extra = nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(4, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.stem

    def get_output_embeddings(self) -> nn.Module:
        return self.read


def test_a_model_tells_its_embeddings_and_its_output_layer() -> None:
    expected = {"0.stem.weight": "embedding", "0.read.weight": "head", "0.extra.weight": "matrix"}
    assert roles(nn.Sequential(Named())) == expected

    class Silent(Named):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

        def get_output_embeddings(self) -> None:  # type: ignore[override]
            return None

    expected = {"0.stem.weight": "matrix", "0.read.weight": "matrix", "0.extra.weight": "last"}
    assert roles(nn.Sequential(Silent())) == expected


def parametrized(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    for layer in model:
        wrap(layer)
    return model


class Rotation(nn.Module):
    """A parametrization with matrices of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ self.a.mT) @ self.a


def test_parametrizations_have_the_owner_of_what_they_make() -> None:
    model = parametrized(lambda layer: parametrizations.spectral_norm(layer))
    assert list(roles(model).values()) == ["embedding", "matrix", "matrix", "last"]
    model = parametrized(lambda layer: parametrizations.weight_norm(layer))
    assert list(roles(model).values()) == ["embedding", "matrix", "matrix", "last"]
    model = parametrized(lambda e: parametrize.register_parametrization(e, "weight", Rotation()))
    found = roles(model)
    assert {role for name, role in found.items() if name.startswith("0.")} == {"embedding"}
    assert {role for name, role in found.items() if name.startswith("1.")} == {"matrix"}
    alone = parametrizations.weight_norm(nn.Linear(4, 3))
    assert roles(alone) == {"parametrizations.weight.original1": "matrix"}


def mlp(*sides: int) -> list[nn.Module]:
    return [nn.Linear(a, b) for a, b in pairwise(sides)]


def block() -> nn.Module:
    return nn.Sequential(*mlp(4, 8, 4))


LAYER = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)


@pytest.mark.parametrize(
    ("model", "last"),
    [
        (nn.Sequential(*mlp(4, 4, 4)), "1.weight"),
        (nn.Linear(4, 4), None),  # the only one
        (nn.Sequential(*mlp(4, 4, 1)), None),  # is a vector, and the hidden one is not the last
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)), "2.weight"),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 3))), "1.1.weight"),
        (nn.ModuleList([block(), block()]), None),
        (nn.ModuleList([block()]), None),  # a list of blocks, of one
        (nn.ModuleList(mlp(4, 4, 4)), "1.weight"),  # a list of layers
        (nn.Sequential(block(), block()), None),
        (nn.Sequential(block(), block(), nn.Linear(4, 4)), "2.weight"),
        (nn.TransformerEncoder(LAYER, 2), None),
        (nn.LSTM(4, 4), None),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else str(each),
)
def test_the_last_linear_layer(model: nn.Module, last: str | None) -> None:
    found = roles(model)
    assert [name for name, role in found.items() if role == "last"] == ([last] if last else [])
    assert set(found.values()) <= {"last", "matrix", "convolution"}


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "checkpointed": checkpoint_wrapper,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(*mlp(4, 4, 4, 4)),
    "head": lambda: nn.ModuleDict({"embed": Own(9, 4), "head": nn.Linear(4, 9), "b": block()}),
    "blocks": lambda: nn.Sequential(block(), block(), nn.Linear(4, 4)),
    "only blocks": lambda: nn.ModuleList([block(), block()]),
    "state space": lambda: Scan(),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_wrappers_of_torch_change_no_role(wrap: str, model: str) -> None:
    """Around the model, and around each module inside."""
    expected = list(roles(MODELS[model]()).values())
    assert list(roles(WRAPS[wrap](MODELS[model]())).values()) == expected
    inside = MODELS[model]()
    for name, module in list(inside.named_modules()):
        if name and type(module).__name__ != "ModuleDict":
            parent, _, last = name.rpartition(".")
            holder = inside.get_submodule(parent)
            setattr(holder, last, WRAPS[wrap](module))
    assert list(roles(inside).values()) == expected


class Scan(nn.Module):
    """A layer of a state-space model."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = Parameter(torch.zeros(8, 4))
        self.D = Parameter(torch.zeros(8))
        self.conv1d = nn.Conv1d(8, 8, 4, groups=8)
        self.project = nn.Linear(4, 8)
        self.in_proj_weight = Parameter(torch.zeros(8, 4))
        self.experts = Parameter(torch.zeros(3, 8, 4))
        self.table = Parameter(torch.zeros(5, 4))
        self.pos_embed = Parameter(torch.zeros(1, 5, 4))
        self.norm = nn.LayerNorm((5, 4), bias=False)
        self.stem = nn.Conv2d(1, 8, 3)
        self.mixed = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(8, 8, 4, groups=8)
        self.lm_head = nn.Sequential(nn.Linear(4, 9))


def test_what_is_no_linear_map() -> None:
    assert roles(Scan()) == {
        "A_log": "other",
        "in_proj_weight": "matrix",
        "experts": "stack",
        "table": "other",
        "pos_embed": "embedding",
        "conv1d.weight": "depthwise",
        "project.weight": "matrix",
        "norm.weight": "other",
        "stem.weight": "convolution",
        "mixed.weight": "convolution",
        "up.weight": "depthwise",
        "lm_head.0.weight": "head",
    }


class Own(nn.Module):
    """A layer of somebody else: one weight, and no layers inside."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.zeros(shape))


class Conv1D(Own):
    """A layer as GPT-2 has: inputs by outputs."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__(nx, nf)
        self.nf, self.nx = nf, nx


class Experts(nn.Module):
    def __init__(self, count: int, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.down_proj = Parameter(torch.zeros(count, 4, 8))


def test_weights_of_inputs_by_outputs() -> None:
    linear = {
        "linear": nn.Linear(4, 3),
        "conv": nn.Conv2d(4, 3, 2),
        "own": Own(4, 3),
        "experts": Experts(2, is_transposed=False),
        "embeddings": nn.ModuleDict({"patch_embeddings": nn.Conv2d(4, 3, 2)}),
    }
    table = nn.ParameterDict({"pos_embed": torch.zeros(1, 5, 4), "position_enc": torch.zeros(5, 4)})
    transposed = {
        "square": Conv1D(4, 4),
        "tall": Conv1D(4, 6),
        "up": nn.ConvTranspose2d(4, 3, 2),
        "experts": Experts(2, is_transposed=True),
        "tokens": nn.Embedding(9, 4),
        "table": table,
        "normed": parametrizations.weight_norm(nn.ConvTranspose1d(4, 3, 2)),
    }
    for model, expected in ((linear, False), (transposed, True)):
        known = inspect_model(nn.ModuleDict(model)).values()
        assert {each.transposed for each in known if each.role != "vector"} == {expected}
    layer = nn.Linear(4, 9, bias=False)
    tied = nn.Sequential(nn.Embedding(9, 4), layer)
    layer.weight = tied[0].weight  # type: ignore[assignment]
    assert [each.transposed for each in inspect_model(tied).values()] == [True]


@pytest.mark.parametrize("count", [1, 2])
def test_experts_are_a_stack_however_few(count: int) -> None:
    assert roles(Experts(count, is_transposed=False)) == {"down_proj": "stack"}
    assert role_of("mlp.experts.down_proj", torch.zeros(count, 4, 8)) == "stack"


def test_layers_of_others() -> None:
    model = nn.ModuleDict(
        {
            "embed": Own(9, 4),
            "embed_dim_proj": Own(4, 4),
            "decoder": nn.ModuleDict(
                {"head_norm": Own(4), "up": Own(4, 8), "experts": Own(2, 4, 8)}
            ),
            "taps": Own(8, 1, 4),
            "read": Own(9, 4),
        }
    )
    assert roles(model) == {
        "embed.weight": "embedding",
        "embed_dim_proj.weight": "matrix",
        "decoder.up.weight": "matrix",
        "decoder.experts.weight": "stack",
        "taps.weight": "depthwise",
        "read.weight": "last",
    }


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        (None, (4, 3), "matrix"),
        (None, (4, 1), "vector"),
        (None, (4, 3, 2), "convolution"),
        (None, (4, 1, 2), "depthwise"),
        ("model.embed_tokens.weight", (9, 4), "embedding"),
        ("encoder.tokenEmbedding.weight", (9, 4), "embedding"),
        ("pos_embed", (9, 4), "embedding"),
        ("embeddings.0.weight", (9, 4), "embedding"),
        ("transformer.wte.weight", (9, 4), "embedding"),
        ("token_embedding_table.weight", (9, 4), "embedding"),
        ("encoder.positional_encoding", (1, 9, 4), "embedding"),
        ("encoder.position_encoder.weight", (9, 4), "matrix"),
        ("embed.layers.0.up.weight", (9, 4), "matrix"),
        ("encoder.embed_dim_proj.weight", (9, 4), "matrix"),
        ("lm_head.weight", (9, 4), "head"),
        ("head.1.weight", (9, 4), "head"),
        ("heads.1.weight", (9, 4), "matrix"),
        ("multihead_attn.in_proj_weight", (9, 4), "matrix"),
        ("head.layers.0.up.weight", (9, 4), "matrix"),
        ("mixer.A_log", (9, 4), "other"),
        ("mlp.experts.gate_up_proj", (2, 9, 4), "stack"),
        ("blocks.0.weight", (2, 9, 4), "convolution"),
    ],
)
def test_names_are_compared_by_whole_components(
    name: str | None, shape: tuple[int, ...], role: str
) -> None:
    assert role_of(name, torch.empty(shape, device="meta")) == role


def test_rules_ask_for_roles() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    groups = param_groups(model, {"role==embedding": {}, "ndim==2 role!=last": {}, "*": {}})
    names = [[name for name, _ in group["params"]] for group in groups]
    assert names == [["0.weight"], ["1.weight"], ["1.bias", "2.weight", "2.bias"]]
    with pytest.raises(ArgumentError, match=r"role with 'embeding'. Did you mean 'embedding'"):
        Rules(["role==embeding"], "Route")
    with pytest.raises(ArgumentError, match="role is compared with == or !="):
        Rules(["role>=head"], "Route")
    with pytest.raises(ArgumentError, match=r"asks for the role .* which only the model knows"):
        Rules(["role==head"], "Route").choose(["a"], [torch.ones(2)])


def test_a_last_rule_for_all_may_match_nothing() -> None:
    model = nn.Linear(4, 3, bias=False)
    groups = param_groups(model, {"ndim==2": {"lr": 0.5}, "*": {"lr": 0.1}})
    assert groups == [{"params": list(model.named_parameters()), "lr": 0.5}]
    Optimizer(groups, "lr(1.0)")
    with pytest.raises(ArgumentError, match=r"'ndim==3' of param_groups matches none"):
        param_groups(model, {"ndim==3": {}, "*": {}})


def test_lazy_parameters_have_no_role_yet() -> None:
    assert roles(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))) == {"1.weight": "matrix"}
