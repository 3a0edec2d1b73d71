"""What a run would cost, from its configuration and its corpus: no model is built, no GPU touched."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from perceiver_ar.cost import (
    activation_bytes,
    forward_flops,
    kept_prefix_length,
    parameter_counts,
    training_flops_per_token,
)
from pretrain.config import RunConfig, ZeroSection, dump_config
from pretrain.data import PreparedData

ASSUMED_MFU = 0.4
PEAK_BF16_FLOPS = {"A100": 312e12, "H100 SXM": 989e12, "B200": 2250e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP/s by the makers' data sheets."""


def print_dry_run(config: RunConfig, ranks: int, tokens_per_second: float | None) -> None:
    """Print the resolved configuration and its cost on `ranks` ranks, which train `tokens_per_second` together."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(dump_config(config), markup=False, highlight=console.is_terminal, soft_wrap=True)
    parameters = parameter_counts(config.model)
    _print_table(console, "Parameters", ["part", "parameters"], _parameter_rows(parameters))
    _print_table(console, "FLOPs per trained token", ["part", "forward", "training"], _flops_rows(config))
    _print_table(console, "Run", ["", ""], _run_rows(config, ranks))
    if config.data.stream is None:
        _print_table(console, "Data", ["", "tokens", "windows", "samples drawn", "epochs"], _data_rows(config))
    stages = [f"ZeRO {stage}{' (set)' * (stage == config.train.zero.stage)}" for stage in range(4)]
    memory = _memory_rows(config, sum(parameters.values()), ranks)
    _print_table(console, f"GiB on each of {ranks} ranks", ["", *stages], memory)
    console.print("Kernel workspaces, communication buffers, allocator slack and a chunk of logits come on top.\n")
    _print_table(console, "Time", ["", "tokens/s", "time"], _time_rows(config, ranks, tokens_per_second))


def state_bytes(parameters: int, *, stage: int, ranks: int, precision: str) -> dict[str, float]:
    """Bytes of one rank for what outlives a micro-batch, by kind, evenly sharded (ZeRO, https://arxiv.org/abs/1910.02054).

    At stages 1-3 DeepSpeed keeps fp32 master weights beside the weights of either precision; with bf16 it also
    accumulates gradients in fp32, beside the bf16 gradients of the backward pass.
    """
    width = {"bf16": 2, "fp32": 4}[precision]
    shard = [1 / ranks if stage >= needed else 1 for needed in range(4)]  # of what is sharded from stage `needed` on
    return {
        "weights": width * parameters * shard[3],
        "gradients": width * parameters * shard[2],
        "fp32 accumulated gradients": 4 * parameters * shard[2] * (precision == "bf16"),
        "fp32 master weights": 4 * parameters * shard[1] * (stage > 0),
        "Adam moments": 8 * parameters * shard[1],
    }


def _parameter_rows(counts: dict[str, int]) -> Iterable[Sequence[str]]:
    for part, count in counts.items():
        yield part, f"{count:,}"
    yield "total", f"{sum(counts.values()):,}"


def _flops_rows(config: RunConfig) -> Iterable[Sequence[str]]:
    model = config.model
    flops = forward_flops(model, prefix_length=kept_prefix_length(model))
    parts = {
        "prefix": flops.prefix,
        "cross-attention": flops.cross_attention,
        "self-attention": flops.self_attention,
        "head": flops.head,
        "masked halves of attention": -flops.causal_discount,
        "total": flops.total,
    }
    for part, forward in parts.items():
        per_token = forward / model.max_latents
        yield part, f"{per_token:,.0f}", f"{3 * per_token:,.0f}"


def _run_rows(config: RunConfig, ranks: int) -> Iterable[Sequence[str]]:
    model, train = config.model, config.train
    accumulation = train.global_batch // (train.micro_batch * ranks)
    tokens = trained_tokens(config)
    factors = f"{train.micro_batch} micro-batch x {accumulation} accumulation x {ranks} ranks"
    yield "global batch", f"{train.global_batch} sequences = {factors}"
    yield "trained tokens per step", f"{train.global_batch * model.max_latents:,}"
    yield "steps", f"{train.steps:,}"
    yield "trained tokens", f"{tokens:,}"
    yield "training FLOPs", f"{tokens * training_flops_per_token(model):.3g}"


def _data_rows(config: RunConfig) -> Iterable[Sequence[str]]:
    data = PreparedData(config)
    samples = data.samples
    drawn = config.train.steps * config.train.global_batch
    epochs = samples.epochs(drawn)
    for part, count in zip(samples.parts, samples.drawn(drawn), strict=True):
        counts = data.corpora[part.name].manifest.splits["train"].tokens, len(part.windows), int(count)
        yield part.name, *(f"{value:,}" for value in counts), f"{epochs[part.name]:.2f}"


def _memory_rows(config: RunConfig, parameters: int, ranks: int) -> Iterable[Sequence[str]]:
    train = config.train
    activations = activation_bytes(
        config.model,
        micro_batch=train.micro_batch,
        precision=train.precision,
        checkpointing=train.activation_checkpointing,
    )
    stages = [
        state_bytes(parameters, stage=stage, ranks=ranks, precision=train.precision) | {"activations": activations}
        for stage in range(4)
    ]
    on_host = [_on_host(train.zero, stage) for stage in range(4)]
    for kind in stages[0]:
        sizes = zip(stages, on_host, strict=True)
        yield kind, *(_gib(stage[kind]) + " on host" * (kind in hosted) for stage, hosted in sizes)
    for stage, hosted in zip(stages, on_host, strict=True):
        for kind in hosted:
            del stage[kind]
    yield "total on the device", *(_gib(sum(stage.values())) for stage in stages)


def _on_host(zero: ZeroSection, stage: int) -> set[str]:
    optimizer = {"fp32 master weights", "Adam moments"} if zero.offload_optimizer and stage > 0 else set()
    return optimizer | ({"weights"} if zero.offload_parameters and stage == 3 else set())


def _time_rows(config: RunConfig, ranks: int, tokens_per_second: float | None) -> Iterable[Sequence[str]]:
    if tokens_per_second:
        rates = {"as given": tokens_per_second}
    else:
        flops = training_flops_per_token(config.model)
        rates = {
            f"{ranks} x {name} at {ASSUMED_MFU:.0%} MFU": ASSUMED_MFU * peak * ranks / flops
            for name, peak in PEAK_BF16_FLOPS.items()
        }
    for name, rate in rates.items():
        yield name, f"{rate:,.0f}", _duration(trained_tokens(config) / rate)


def trained_tokens(config: RunConfig) -> int:
    """Targets of the whole run."""
    return config.train.steps * config.train.global_batch * config.model.max_latents


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD if console.is_terminal else None,
        padding=(0, 3, 0, 0),
        show_header=any(columns),
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    console.print()
