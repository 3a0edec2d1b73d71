"""What a run does before its first step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from perceiver_ar.blocks.attend import describe_backend, use_backend
from perceiver_ar.cost import training_flops_per_token
from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import CheckpointReader
from pretrain.config import RunConfig
from pretrain.distributed import Ranks, RanksError
from pretrain.engine import Engine, accumulation_steps
from pretrain.initial_model import open_initial_model
from pretrain.progress import Progress
from pretrain.tasks.causal_lm import CausalLM
from pretrain.trained_model import DTYPES


def build_task(config: RunConfig, checkpoint: Path | None) -> CausalLM:
    """The model on the CPU in fp32: with a checkpoint's weights, else those of `model.init_from` or of the run's seed.

    Raises RanksError where these are another model's, or damaged.
    """
    use_backend(config.train.attention)
    torch.manual_seed(config.run.seed)
    model = PerceiverAR(config.model.architecture)
    if checkpoint is not None:
        _load_weights(model, checkpoint)
    elif config.model.init_from is not None:
        _load_initial_weights(model, config.model.init_from)
    model.activation_checkpointing = config.train.activation_checkpointing
    return CausalLM(model, config.run.seed)


def _load_weights(model: PerceiverAR, checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    weights = dict(model.named_parameters())
    _check_shapes(reader.state["shapes"], {name: weight.shape for name, weight in weights.items()}, checkpoint)
    # One after another: all ranks of a node do this at once, so that a second copy of the model counts.
    for name, weight in weights.items():
        weight.data.copy_(reader.whole("weight", name))


def _load_initial_weights(model: PerceiverAR, name: str) -> None:
    weights = dict(model.named_parameters())
    try:
        for own, weight in open_initial_model(name).weights():
            weights[own].data.copy_(weight)
    except (OSError, ValueError) as error:
        raise RanksError(f"model.init_from: {error}") from error


def _check_shapes(saved: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], checkpoint: Path) -> None:
    for name in [*wanted, *saved]:
        ours, theirs = (tuple(of[name]) if name in of else "absent" for of in (wanted, saved))
        if ours != theirs:
            raise RanksError(
                f"model: {name} is {ours} by the configuration but {theirs} in {checkpoint}; a run keeps its model: "
                "choose another run.dir for another one"
            )


def banner(config: RunConfig, ranks: Ranks, engine: Engine, progress: Progress, checkpoint: Path | None) -> str:
    """What is about to run, for people."""
    train, model = config.train, config.model
    head_channels = model.num_channels // model.num_heads
    attention = describe_backend(ranks.device, DTYPES[train.precision], head_channels)
    cuda = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if cuda else f"{torch.get_num_threads()} CPU threads"
    accumulation = accumulation_steps(config, ranks.size)
    tokens_per_step = train.global_batch * model.max_latents
    begin = "from scratch" if model.init_from is None else f"from the weights of {model.init_from}"
    start = begin if checkpoint is None else f"from step {progress.step}, {checkpoint}"
    return "\n".join(
        (
            f"run             {config.run.dir}, {start}",
            f"ranks           {ranks.size} x {device}, ZeRO stage {train.zero.stage}, {train.precision}",
            f"attention       {attention}",
            f"parameters      {sum(map(math.prod, engine.shapes.values())):,}, "
            f"{training_flops_per_token(model):.3g} FLOPs per trained token",
            f"global batch    {train.global_batch} = micro-batch {train.micro_batch} x accumulation {accumulation} "
            f"x {ranks.size} ranks; {tokens_per_step:,} trained tokens",
            f"steps           {train.steps:,}, up to {train.steps * tokens_per_step:,} trained tokens",
        )
    )
