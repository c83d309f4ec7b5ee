"""Registers the adaptive methods; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("adaptive",)


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "adam",
        "projcore_adaptive:Adam",
        summary="Divides momentum by the root of the running mean of squared gradients.",
        paper="arXiv:1412.6980",
        tags=TAGS,
        example=[{}, {"amsgrad": True}],
    )
    register(
        "adamw",
        "projcore_adaptive:AdamW",
        summary="Adam with decoupled weight decay.",
        paper="arXiv:1711.05101",
        tags=TAGS,
        example={},
    )
    register(
        "rmsprop",
        "projcore_adaptive:RMSprop",
        summary="Divides by the root of the running mean of squared gradients.",
        paper="Tieleman & Hinton, 2012, Neural Networks for Machine Learning, lecture 6.5",
        tags=TAGS,
        example=[{}, {"centered": True, "momentum": 0.9}],
    )
    register(
        "adagrad",
        "projcore_adaptive:Adagrad",
        summary="Divides by the root of the sum of squared gradients.",
        paper="Duchi, Hazan & Singer, 2011, JMLR 12",
        tags=TAGS,
        example=[{}, {"lr_decay": 0.1}],
    )
    register(
        "lion",
        "projcore_adaptive:Lion",
        summary="Takes the sign of an interpolation between momentum and gradient.",
        paper="arXiv:2302.06675",
        tags=TAGS,
        example={},
    )
