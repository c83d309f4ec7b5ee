"""A run of Trainer with ``optim="galore_adamw"`` goes on with our recipe as it would have there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from projcore import adopt_state
from projcore.errors import CheckpointError
from projcore.recipes import galore_adamw
from projcore_lowrank import from_galore_torch

transformers = pytest.importorskip("transformers", reason="`make ecosystem` has it")
pytest.importorskip("galore_torch", reason="`make ecosystem` has it")

TOKENS = torch.randint(0, 100, (32, 16), generator=torch.Generator().manual_seed(0))


def build() -> Any:
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return transformers.LlamaForCausalLM(config)


def trainer(model: Any, folder: Path) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-2,
        optim="galore_adamw",
        optim_args="rank=8, update_proj_gap=3, scale=0.5",
        optim_target_modules=["attn", "mlp"],
    )
    data = [{"input_ids": row, "labels": row} for row in TOKENS]
    return transformers.Trainer(model, arguments, train_dataset=data)


def train(model: Any, optimizer: Any) -> None:
    model.train()
    for step in range(6):
        rows = TOKENS[4 * step : 4 * step + 4]
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(build(), folder).train()
    return folder / "checkpoint-4"


def load(checkpoint: Path) -> tuple[Any, Any]:
    """Returns the model, and the optimizer of that run, as Trainer makes it again."""
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
    optimizer = trainer(model, checkpoint.parent).create_optimizer()
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=False)
    for group in saved["param_groups"]:
        group["lr"] = 1e-2  # the schedule had come to its end
    optimizer.load_state_dict(saved)
    return model, optimizer


def test_the_run_goes_on(checkpoint: Path) -> None:
    """To the rounding of float32, over two refreshes: batched decompositions may differ in it."""
    model, theirs = load(checkpoint)
    train(model, theirs)
    other, old = load(checkpoint)
    optimizer = galore_adamw(other, rank=8, lr=1.0)
    adopt_state(optimizer, old, from_galore_torch)
    groups = optimizer.param_groups
    assert {(g["rank"], g["period"], g["scale"]) for g in groups if g["rank"]} == {(8, 3, 0.5)}
    train(other, optimizer)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


def test_other_matrices_are_named(checkpoint: Path) -> None:
    model, old = load(checkpoint)
    optimizer = galore_adamw(model, rank=8, project="*self_attn* ndim==2")
    with pytest.raises(CheckpointError, match=r"left|right"):
        adopt_state(optimizer, old, from_galore_torch)
