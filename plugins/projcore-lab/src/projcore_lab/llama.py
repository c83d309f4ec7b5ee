"""Shapes of LLaMA models, in the sizes that papers on memory-efficient optimizers pretrain."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes of a LLaMA model, whose names of parameters are those of Hugging Face.

    Attributes:
        hidden: Width of the model.
        intermediate: Width inside the feed-forward blocks.
        layers: Number of blocks.
        vocabulary: Number of tokens; the embedding and the head each have a matrix of their own.
        keys: Width of all keys, and of all values, where heads share them; else that of the model.
    """

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int = 32000
    keys: int | None = None

    def shapes(self) -> Shapes:
        """Returns the shape of each parameter by its name."""
        width, inner = self.hidden, self.intermediate
        keys = width if self.keys is None else self.keys
        block: Shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        blocks = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(self.layers)
            for name, shape in block.items()
        }
        return {
            "model.embed_tokens.weight": (self.vocabulary, width),
            **blocks,
            "model.norm.weight": (width,),
            "lm_head.weight": (self.vocabulary, width),
        }


# As in the configurations of Zhao et al., 2024, https://arxiv.org/abs/2403.03507.
LLAMA = {
    "llama-60m": Llama(512, 1376, 8),
    "llama-130m": Llama(768, 2048, 12),
    "llama-350m": Llama(1024, 2736, 24),
    "llama-1b": Llama(2048, 5461, 24),
    "llama-7b": Llama(4096, 11008, 32),
    # Touvron et al., 2023, https://arxiv.org/abs/2307.09288: 8 of 64 heads have keys and values.
    "llama-70b": Llama(8192, 28672, 80, keys=1024),
}
