"""Trains a small LLaMA under FSDP2 with a matrix method, and goes on with other processes.

    torchrun --nproc-per-node 2 train.py --steps 20 --save checkpoint
    torchrun --nproc-per-node 3 train.py --steps 40 --resume checkpoint

The lines about sharding are torch's; the optimizer is built as for a model in one process.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import projcore

SEQUENCES, TOKENS = 12, 64  # in a batch of all processes; each takes its share


def build(spec: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Makes the model, sharded layer by layer, and its optimizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    mesh = dist.init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, projcore.create_optimizer(model, spec)


def world() -> int:
    """Returns the number of processes."""
    return dist.get_world_size()


def batch(step: int) -> torch.Tensor:
    """Returns this process's share of the bytes that all train on in a step."""
    text = b"".join(path.read_bytes() for path in sorted(Path(json.__file__).parent.glob("*.py")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(data) - TOKENS, (SEQUENCES,), generator=generator)
    mine = starts[dist.get_rank() :: world()]
    return torch.stack([data[start : start + TOKENS] for start in mine])


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Trains for some steps; returns the mean of the last losses over all processes."""
    loss = torch.zeros(())
    for step in steps:
        tokens = batch(step)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    mean = loss.detach()
    dist.all_reduce(mean)
    return float(mean) / world()


def main() -> None:
    """Trains as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="galore_adamw(rank=16, lr=3e-3, period=10)")
    parser.add_argument("--steps", type=int, default=40, help="up to which step (default: 40)")
    parser.add_argument("--save", type=Path, help="a folder to write a checkpoint to")
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
    arguments = parser.parse_args()
    dist.init_process_group()
    model, optimizer = build(arguments.optimizer)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    begin = {"step": torch.zeros((), dtype=torch.int64)}
    if arguments.resume:
        dcp.load(parts | begin, checkpoint_id=arguments.resume)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=parts["model"],
            optim_state_dict=parts["optimizer"],
        )
    loss = train(model, optimizer, range(int(begin["step"]), arguments.steps))
    if arguments.save:
        parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        begin["step"].fill_(arguments.steps)
        dcp.save(parts | begin, checkpoint_id=arguments.save)
    if dist.get_rank() == 0:
        print(f"loss {loss:.6f} after {arguments.steps} steps in {world()} processes", flush=True)
    dist.destroy_process_group()
    os._exit(0)  # FSDP2 keeps gloo's threads alive, which may abort Python while it is finalized


if __name__ == "__main__":
    main()
