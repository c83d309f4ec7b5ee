"""The chains and recipes that are measured for a GPU, on the parameters of LLaMA.

``benchmarks/gpu.py`` times them on a device, and ``tests/launches`` counts what they ask of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import Parameter

from projcore import Optimizer, recipes
from projcore_lab.llama import LLAMA, Llama

Named = list[tuple[str, Parameter]]

LARGE = replace(LLAMA["llama-7b"], layers=2)  # 21 parameters, 2.7 GB in float32
SMALL = Llama(hidden=32, intermediate=48, layers=1, vocabulary=64)
MASTER = 'to([adamw(), lr(1e-3)], "float32", master=True)'
INSIDE = "[adam(), lr(1e-3)]"
ROUTES = 'route({"ndim>=2": ["adam()", "lr(1e-3)"], "*": ["adam()", "lr(1e-3)"]})'


@dataclass(frozen=True)
class Case:
    """An optimizer to measure.

    Attributes:
        make: Makes it of parameters with names, the width of the model, and the steps between
            refreshes, which those that have none ignore.
        dtype: Of the parameters.
        periodic: Whether it has refreshes.
        model: Whose parameters it is measured on, where there is room for it.
    """

    make: Callable[[Named, int, int], Optimizer]
    dtype: torch.dtype = torch.float32
    periodic: bool = False
    model: Llama = LARGE


def chain(text: str, dtype: torch.dtype = torch.float32, **arguments: Any) -> Case:
    """Returns the case of an expression; the arguments are of `Optimizer`."""
    return Case(lambda named, width, period: Optimizer(named, text, **arguments), dtype)


def recipe(name: str, share: int | None = None, periodic: bool = True, **settings: Any) -> Case:
    """Returns the case of a recipe, of a rank that is the share of the width."""

    def make(named: Named, width: int, period: int) -> Optimizer:
        chosen = dict(settings)
        if share is not None:
            chosen["rank"] = width // share
        if periodic:
            chosen["period"] = period
        made: Optimizer = getattr(recipes, name)(named, **chosen)
        return made

    return Case(make, periodic=periodic)


def in_buckets(case: Case, size: int) -> Case:
    """Returns the case in buckets of so many bytes."""

    def make(named: Named, width: int, period: int) -> Optimizer:
        optimizer = case.make(named, width, period)
        optimizer.bucket_bytes = size
        return optimizer

    return replace(case, make=make)


CASES: dict[str, Case] = {
    "adam(); lr": chain("adam(); lr(1e-3)"),
    "adamw(); lr": chain("adamw(); lr(1e-3)"),
    "adamw(); lr, buckets of 64 MiB": chain("adamw(); lr(1e-3)", bucket_bytes=64 << 20),
    "vector([adam(), lr])": chain(f"vector({INSIDE})"),
    "scalar([adam(), lr])": chain(f"scalar({INSIDE})"),
    "route": chain(ROUTES),
    "clip_norm; adam(); lr": chain("clip_norm(1.0); adam(); lr(1e-3)"),
    "adam(); lr; polyak_averaging": chain("adam(); lr(1e-3); polyak_averaging(0.999)"),
    'to([adam(), lr], "float64")': chain(f'to({INSIDE}, "float64")'),
    'to([adam(), lr], "bfloat16")': chain(f'to({INSIDE}, "bfloat16")'),
    'to([adamw(), lr], "float32", master=True) on bfloat16': chain(MASTER, torch.bfloat16),
    'to([adam(), lr], device="cpu")': chain(f'to({INSIDE}, None, "cpu")'),
    "view_as_real([adam(), lr]) on complex64": chain(f"view_as_real({INSIDE})", torch.complex64),
    "lion(); lr": chain("lion(); lr(1e-3)"),
    "adafactor(); lr": chain("adafactor(); lr(1e-3)"),
    "lamb(); lr": chain("lamb(); lr(1e-3)"),
    "galore_adamw": recipe("galore_adamw", 4),
    "galore_adamw, buckets of 64 MiB": in_buckets(recipe("galore_adamw", 4), 64 << 20),
    "galore_adamw, subspace, staggered": recipe(
        "galore_adamw", 4, refresh="subspace", stagger=True
    ),
    "galore_adafactor": recipe("galore_adafactor", 4),
    "golore": recipe("golore", 4),
    "fira": recipe("fira", 4),
    "apollo": recipe("apollo", 16),
    "apollo_mini": recipe("apollo_mini"),
    "flora": recipe("flora", 16),
    "frugal": recipe("frugal"),
    "ldadam": recipe("ldadam", 16, periodic=False),
    "dct_adamw": recipe("dct_adamw", 16, periodic=False),
    "sumo": recipe("sumo", 16),
    "subtrack": recipe("subtrack", 4),
    "grasswalk": recipe("grasswalk", 4),
    "grassjump": recipe("grassjump", 4),
    "alice": recipe("alice", 16),
    "foam_adamw": recipe("foam_adamw", periodic=False),
    "soap": recipe("soap"),
    "kl_soap": recipe("kl_soap"),
    "muon_adamw": recipe("muon_adamw", periodic=False),
    "racs_adamw": recipe("racs_adamw", periodic=False),
    "scale_adamw": recipe("scale_adamw", periodic=False),
    "normuon_adamw": recipe("normuon_adamw", periodic=False),
    "muon_plus_adamw": recipe("muon_plus_adamw", periodic=False),
    "muon_heads_adamw": recipe("muon_heads_adamw", periodic=False, heads={"*.[qkv]_proj.*": 32}),
    "dion2_adamw": recipe("dion2_adamw", periodic=False),
    "adam_h": recipe("adam_h", periodic=False),
    "muon_h": recipe("muon_h", periodic=False),
    "soap_h": recipe("soap_h"),
    "soap_muon": recipe("soap_muon"),
    # Of a large model it makes thousands of blocks, one by one.
    "intrinsic_dimension, of a small model": replace(
        recipe("intrinsic_dimension", periodic=False, dimension=10), model=SMALL
    ),
}
