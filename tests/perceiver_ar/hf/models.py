"""Tiny models and prompts that the tests of this folder share."""

import dataclasses

import torch

from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig
from perceiver_ar.models.config import PerceiverARConfig

CONTEXT, LATENTS = 32, 8
# Large initial weights make next-token distributions that differ clearly from one another.
SIZES = dict(
    vocab_size=64, max_seq_len=CONTEXT, max_latents=LATENTS, num_channels=32, num_heads=4, num_layers=2, init_scale=0.3
)


def build(preset: str = "default", seed: int = 0, **overrides: object) -> PerceiverARForCausalLM:
    torch.manual_seed(seed)
    config = PerceiverARConfig.preset(preset, **SIZES | {"zero_init_output": False} | overrides)
    return PerceiverARForCausalLM(PerceiverARHFConfig(**dataclasses.asdict(config))).eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(6, 64, shape, generator=torch.Generator().manual_seed(sum(shape)))
