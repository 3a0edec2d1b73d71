"""DeepSpeed, and everything that must be known about it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.config import OptimizerSection, RunConfig
from pretrain.corpus import Batch
from pretrain.distributed import Ranks, set_timeouts
from pretrain.tasks.causal_lm import CausalLM, TaskOutput

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime import bf16_optimizer
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

logger.setLevel(logging.ERROR)
# It calls collectives by names that torch is renaming, and would be told so at every call.
warnings.filterwarnings("ignore", message=".*is deprecated. Please use", category=FutureWarning)
# Its shared-memory all-reduce on CPU would be compiled at the first start; gloo does.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Its bf16 optimizer collects garbage and prints memory use six times while it is built.
bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
"""What is kept for each parameter in fp32: itself and Adam's moments."""


class Engine:
    """A task trained by AdamW under DeepSpeed ZeRO 0-3, its state readable and writable as whole fp32 tensors.

    `task.model` holds the weights; their names are those of its state dict at every ZeRO stage and number of ranks.
    """

    def __init__(self, task: CausalLM, config: RunConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        self.stage = config.train.zero.stage
        self.shapes = {name: tuple(p.shape) for name, p in task.model.named_parameters()}
        """Of every trained parameter; under ZeRO-3 the parameters themselves have none."""
        adam = build_adamw(task, config.optimizer, offload=config.train.zero.offload_optimizer)
        self._deepspeed, *_ = deepspeed.initialize(
            model=task, optimizer=adam, config=deepspeed_config(config, ranks.size), dist_init_required=False
        )
        set_timeouts()
        if config.train.compile:
            self._deepspeed.compile()
        self._parameters = dict(task.model.named_parameters())
        self._adam = self._deepspeed.basic_optimizer
        self._create_moments()

    def __call__(self, batch: Batch) -> TaskOutput:
        """The task's output, through the hooks that ZeRO-3 gathers weights by. Collective under ZeRO-3."""
        return self._deepspeed(batch)

    def train(self, mode: bool = True) -> None:
        self._deepspeed.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add this micro-batch's gradients of `loss`, of which the step minimises the sum over micro-batches and ranks.

        `last` marks the step's last micro-batch, after which ranks exchange gradients.
        """
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks, and over micro-batches unless told not to.
        self._deepspeed.backward(loss * self.ranks.size, scale_wrt_gas=False)

    def step(self, lr: float) -> tuple[bool, float]:
        """Update the weights at learning rate `lr`; (whether it did, the gradient norm before clipping).

        A step whose gradients are not finite changes nothing, moments included. Collective.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._plain_step()
        self._deepspeed.step()
        return self._deepspeed.was_step_applied(), float(self._deepspeed.get_global_grad_norm())

    def _plain_step(self) -> tuple[bool, float]:
        # Without ZeRO, DeepSpeed keeps no gradient norm in fp32 and applies steps that are not finite.
        # Added up in float64 like DeepSpeed's own: in fp32 it would be off by 1e-5 from 100,000 elements on.
        gradients = (p.grad for p in self._parameters.values() if p.grad is not None)
        norm = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in gradients]).norm()
        if finite := bool(norm.isfinite()):
            self._deepspeed.step()
        else:
            self._deepspeed.zero_grad()
        return finite, float(norm)

    def gather(self, name: str, kind: Kind) -> Tensor:
        """One parameter's fp32 weight or moment, whole, on every rank. Collective."""
        parameter = self._parameters[name]
        if self.stage == 0:
            return parameter.detach() if kind == "weight" else self._adam.state[parameter][kind]
        if kind == "weight":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def restore(self, name: str, kind: Kind, value: Tensor) -> None:
        """Set this rank's part of one parameter's fp32 weight or moment from the whole.

        The low-precision copy for the forward pass stays as it is: give the task the weights before it is wrapped.
        """
        parameter: Any = self._parameters[name]
        if self.stage == 0:
            self.gather(name, kind).copy_(value)
        elif self.stage == 3:
            # The `full` setters of ZeRO-3 cannot set a parameter that does not divide evenly over the ranks.
            size = parameter.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, size * self.ranks.size - value.numel()))
            part = padded.narrow(0, size * self.ranks.rank, size)
            if kind == "weight":
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        elif kind == "weight":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    @property
    def adam_step(self) -> int:
        """Updates applied so far: what Adam's bias correction counts."""
        return int(next(iter(self._adam.state.values()))["step"])

    @adam_step.setter
    def adam_step(self, value: int) -> None:
        for state in self._adam.state.values():
            state["step"] = value if isinstance(state["step"], int) else torch.full_like(state["step"], value)

    def _create_moments(self) -> None:
        # Adam would create them in its first step, and DeepSpeed would then link to the parameters those of the first
        # parameter group only (stages 1 and 2). Existing from the start, they can be read and set at any time.
        fused = isinstance(self._adam, torch.optim.AdamW)
        for tensor in self._tensors_of_adam():
            self._adam.state[tensor] = {
                "step": torch.zeros((), device=tensor.device) if fused else 0,
                "exp_avg": torch.zeros_like(tensor, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(tensor, requires_grad=False),
            }
        if self.stage in (1, 2):
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _tensors_of_adam(self) -> Iterator[Tensor]:
        if self.stage == 3:
            yield from self._deepspeed.optimizer.fp32_partitioned_groups_flat
        else:
            for group in self._adam.param_groups:
                yield from group["params"]


def build_adamw(task: CausalLM, section: OptimizerSection, *, offload: bool) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only; on the host where the optimizer is offloaded."""
    matrices = {
        module.weight
        for name, module in task.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not name.endswith("positions")
    }
    groups = [
        {"params": [p for p in task.parameters() if p in matrices], "weight_decay": section.weight_decay},
        {"params": [p for p in task.parameters() if p not in matrices], "weight_decay": 0.0},
    ]
    if offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=section.lr, betas=section.betas, eps=section.eps)
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run."""
    train, zero = config.train, config.train.zero
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(config, world_size),
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Gradients are summed over ranks in the precision they are accumulated in, not in the model's.
        "communication_data_type": "fp32",
        "gradient_clipping": train.gradient_clipping,
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": zero.overlap_communication,
            **({"offload_optimizer": host} if zero.offload_optimizer else {}),
            **({"offload_param": host} if zero.offload_parameters else {}),
        },
    }


def accumulation_steps(config: RunConfig, world_size: int) -> int:
    """Micro-batches of one rank in a step."""
    return config.train.global_batch // (config.train.micro_batch * world_size)
