"""Decoding timed token by token: through `generate`, beside the plain way, and by length of the context."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig

from benchmarks.concatenating_decoder import SHAPE, ConcatenatingDecoder
from perceiver_ar.cost import count_parameters
from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig
from perceiver_ar.models.cache import PerceiverARCache
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig

PROMPT = 2048
PEER_TOKENS_PER_SECOND = 53
"""Recorded of perceiver-io's own backend at `SHAPE` behind a prompt of `PROMPT` tokens: batch 1, fp32, 2 threads."""


class Clock:
    """A streamer that notes when each token is there; the first ids it gets are the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def seconds(self) -> float:
        """From the first new token to the last: without reading the prompt."""
        return self.times[-1] - self.times[1]


def make_model(config: PerceiverARConfig) -> PerceiverARForCausalLM:
    """With random weights and no end token, so that it generates as many tokens as it is asked for."""
    torch.manual_seed(0)
    model = PerceiverARForCausalLM(PerceiverARHFConfig(**vars(config))).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def random_prompt(config: PerceiverARConfig, tokens: int) -> Tensor:
    return torch.randint(config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def compare(tokens: int, turns: int) -> dict[str, Any]:
    """Tokens per second behind a prompt, in turns: through `generate` with a growing cache, with a static one and
    compiled steps, and the plain way."""
    model, prompt = make_model(SHAPE), random_prompt(SHAPE, PROMPT)
    check_equal(model.model, prompt)
    arms: dict[str, Callable[[], float]] = {
        "dynamic": lambda: generate(model, prompt, tokens),
        "compiled": lambda: generate(model, prompt, tokens, cache_implementation="static", compile_config=compiling()),
        "concatenating": lambda: concatenate(model.model, prompt, tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, arm in arms.items():
            seconds = arm()
            if turn:  # the first allocates memory and compiles
                rates[name].append((tokens - 1) / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "parameters": count_parameters(SHAPE),
        "prompt": PROMPT,
        "tokens": tokens,
        "turns": turns,
        "tokens_per_second": {
            name: {"median": medians[name], "min": min(values), "max": max(values)} for name, values in rates.items()
        },
        "over_concatenating": {name: medians[name] / medians["concatenating"] for name in ("dynamic", "compiled")},
        "peer_tokens_per_second": PEER_TOKENS_PER_SECOND,
    }


def compiling() -> CompileConfig:
    """`generate` compiles steps by itself on a GPU only."""
    config = CompileConfig(mode="default", fullgraph=True)
    config._compile_all_devices = True  # type: ignore[assignment]
    return config


def check_equal(model: PerceiverAR, prompt: Tensor) -> None:
    """Both ways compute the same logits, for the prompt and for tokens behind it."""
    plain, cache = ConcatenatingDecoder(model), PerceiverARCache(model.config)
    ids, prefix = prompt, prompt.shape[1] - 1
    for _ in range(4):
        logits = model(ids, prefix, cache=cache).logits[:, -1]
        torch.testing.assert_close(plain(ids, prefix), logits, atol=1e-4, rtol=1e-4)
        ids, prefix = logits.argmax(-1, keepdim=True), 0


def generate(model: PerceiverARForCausalLM, prompt: Tensor, tokens: int, **options: Any) -> float:
    """Seconds for all new tokens but the first; like its peer's, its latents begin with one."""
    clock = Clock()
    model.generate(prompt, max_new_tokens=tokens, do_sample=False, num_latents=1, streamer=clock, **options)
    return clock.seconds()


def concatenate(model: PerceiverAR, prompt: Tensor, tokens: int) -> float:
    """The same, the plain way, in a loop with nothing around it."""
    decoder, clock = ConcatenatingDecoder(model), Clock()
    clock.put(prompt)
    token = decoder(prompt, prompt.shape[1] - 1).argmax(-1, keepdim=True)
    clock.put(token)
    for _ in range(tokens - 1):
        token = decoder(token).argmax(-1, keepdim=True)
        clock.put(token)
    return clock.seconds()


@torch.inference_mode()
def by_context(contexts: Sequence[int], tokens: int) -> list[dict[str, float]]:
    """Milliseconds a token behind prompts of these lengths, and how much of them is the cross-attention's read.

    The read grows with the context: it is its keys and values. What is left should not.
    """
    config = replace(SHAPE, max_seq_len=max(contexts) + tokens)
    model = make_model(config)
    reads: list[float] = []
    time_calls(model.model.cross_attention.attention, reads)
    rows = []
    for context in contexts:
        clock = Clock()
        reads.clear()
        prompt = random_prompt(config, context)
        model.generate(prompt, max_new_tokens=tokens, do_sample=False, num_latents=1, streamer=clock)
        steps = [end - begin for begin, end in pairwise(clock.times[1:])]
        step, read = statistics.median(steps), statistics.median(reads[1:])
        rest = statistics.median(a - b for a, b in zip(steps, reads[1:], strict=True))
        rows.append(
            {"context": context, "step_ms": step * 1e3, "cross_attention_ms": read * 1e3, "rest_ms": rest * 1e3}
        )
    return rows


def time_calls(module: torch.nn.Module, seconds: list[float]) -> None:
    """Add what each call of the module takes to `seconds`."""
    begun = 0.0

    def begin(*_: Any) -> None:
        nonlocal begun
        begun = time.perf_counter()

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - begun))
