"""Models of transformers and PEFT: where their parameters go."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from projcore import inspect_model, recipes

transformers = pytest.importorskip("transformers", reason="`make ecosystem` has it")
peft = pytest.importorskip("peft", reason="`make ecosystem` has it")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
SMALL = {**SIZES, "vocab_size": 50}


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def gpt_oss(experts: int) -> Any:
    config = transformers.GptOssConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=1, head_dim=8
    )
    return transformers.GptOssForCausalLM(config)


def mixtral(experts: int) -> Any:
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=1
    )
    return transformers.MixtralForCausalLM(config)


def found(model: Any, end: str) -> set[tuple[str, bool]]:
    """The roles of the parameters with such names, and whether they are inputs by outputs."""
    known = inspect_model(model).values()
    return {(each.role, each.transposed) for each in known if each.name.endswith(end)}


@pytest.mark.parametrize("experts", [1, 4])
def test_experts_are_stacks_in_their_orientation(experts: int) -> None:
    assert found(mixtral(experts), "_proj") == {("stack", False)}
    assert found(gpt_oss(experts), "_proj") == {("stack", True)}
    assert found(gpt_oss(experts), "proj_bias") <= {("other", True), ("vector", True)}


def test_layers_of_gpt2_are_inputs_by_outputs() -> None:
    model = gpt2()
    assert found(model, "c_fc.weight") == found(model, "c_attn.weight") == {("matrix", True)}
    assert found(model, "wte.weight") == {("embedding", True)}
    optimizer = recipes.normuon_adamw(model)
    groups = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert groups["transformer.h.0.mlp.c_fc.weight"]["transposed"] is True


def test_patches_are_no_lookup() -> None:
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
    model = transformers.ViTForImageClassification(config)
    assert found(model, "projection.weight") == {("embedding", False)}
    assert found(model, "position_embeddings") == {("embedding", True)}


def test_adapters_within_the_rank_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """If only frozen weights are large enough, nothing that is trained is projected."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    recipes.galore_adamw(model, rank=16)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "projects 7 of 14 parameters, all of them frozen" in record.getMessage()
    assert "a side within rank 16: " in record.getMessage()
