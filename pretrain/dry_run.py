"""What a run would cost, from its configuration and its data: no memory is taken, no GPU touched."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from perceiver_ar.cost import parameter_counts_of
from pretrain.config import RunConfig, ZeroSection, dump_config
from pretrain.tasks import open_task
from pretrain.tasks.task import Task

ASSUMED_MFU = 0.4
PEAK_BF16_FLOPS = {"A100": 312e12, "H100 SXM": 989e12, "B200": 2250e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP/s by the makers' data sheets."""


def print_dry_run(config: RunConfig, ranks: int, rate: float | None) -> None:
    """Print the resolved configuration and its cost on `ranks` ranks, which train `rate` targets a second together."""
    task = open_task(config)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(dump_config(config), markup=False, highlight=console.is_terminal, soft_wrap=True)
    parameters = parameter_counts_of(lambda: task.build().model)
    _print_table(console, "Parameters", ["part", "parameters"], _parameter_rows(parameters))
    for table in task.cost_tables():
        _print_table(console, *table)
    _print_table(console, "Run", ["", ""], _run_rows(config, task, ranks))
    stages = [f"ZeRO {stage}{' (set)' * (stage == config.train.zero.stage)}" for stage in range(4)]
    memory = _memory_rows(config, task, sum(parameters.values()), ranks)
    _print_table(console, f"GiB on each of {ranks} ranks", ["", *stages], memory)
    console.print("Kernel workspaces, communication buffers, allocator slack and a chunk of logits come on top.\n")
    _print_table(console, "Time", ["", f"{task.unit}/s", "time"], _time_rows(config, task, ranks, rate))


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


def _run_rows(config: RunConfig, task: Task, ranks: int) -> Iterable[Sequence[str]]:
    train = config.train
    accumulation = train.global_batch // (train.micro_batch * ranks)
    factors = f"{train.micro_batch} micro-batch x {accumulation} accumulation x {ranks} ranks"
    yield "global batch", f"{train.global_batch} samples = {factors}"
    yield f"trained {task.unit} per step", f"{task.step_targets():,}"
    yield "steps", f"{train.steps:,}"
    yield f"trained {task.unit}", f"{train.steps * task.step_targets():,}"
    yield "training FLOPs", f"{train.steps * task.step_flops():.3g}"


def _memory_rows(config: RunConfig, task: Task, parameters: int, ranks: int) -> Iterable[Sequence[str]]:
    train = config.train
    activations = task.activation_bytes()
    on_top = {} if activations is None else {"activations": activations}
    stages = [
        state_bytes(parameters, stage=stage, ranks=ranks, precision=train.precision) | on_top for stage in range(4)
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


def _time_rows(config: RunConfig, task: Task, ranks: int, rate: float | None) -> Iterable[Sequence[str]]:
    targets = task.step_targets()
    if rate:
        rates = {"as given": rate}
    else:
        flops = task.step_flops() / targets
        rates = {
            f"{ranks} x {name} at {ASSUMED_MFU:.0%} MFU": ASSUMED_MFU * peak * ranks / flops
            for name, peak in PEAK_BF16_FLOPS.items()
        }
    for name, per_second in rates.items():
        yield name, f"{per_second:,.0f}", _duration(config.train.steps * targets / per_second)


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
