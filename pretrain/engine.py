"""DeepSpeed, and everything that must be known about it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.checkpoint.layout import KINDS, Kind, Piece
from pretrain.config import OptimizerSection, RunConfig
from pretrain.distributed import Ranks, set_timeouts
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import Batch, TaskOutput

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage3, stage_1_and_2
from deepspeed.utils import logger, safe_get_full_grad

logger.setLevel(logging.ERROR)
# It calls collectives by names that torch is renaming, and would be told so at every call.
warnings.filterwarnings("ignore", message=".*is deprecated. Please use", category=FutureWarning)
# Its shared-memory all-reduce on CPU would be compiled at the first start; gloo does.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Its bf16 optimizer collects garbage and prints memory use six times while it is built.
bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None

Judge = Callable[[float, float], str | None]
"""Why a step with this loss and this gradient norm is not to be applied, or None. It must refuse what is not finite."""


@dataclass(frozen=True)
class Update:
    """What came of a step."""

    problem: str | None
    """Why nothing has changed; None where the weights have been updated."""
    loss: float
    """Mean nats per target of the global batch."""
    grad_norm: float
    """Before clipping."""


class Engine:
    """An objective trained under DeepSpeed ZeRO 0-3, its state readable and writable in fp32 pieces.

    `objective.model` holds the weights; their names are those of its state dict at every ZeRO stage and number of
    ranks. Parameters that need no gradient stay as they are; buffers, such as running statistics, are kept with them.
    """

    def __init__(self, objective: Objective, config: RunConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        self.stage = config.train.zero.stage
        self.shapes = {name: tuple(tensor.shape) for name, tensor in saved_tensors(objective.model).items()}
        """Of all that is saved; under ZeRO-3 the parameters themselves have none."""
        # In low precision DeepSpeed casts the whole module, and keeps fp32 weights only of what it trains.
        self._frozen = {
            name: p.detach().clone() for name, p in objective.model.named_parameters() if not p.requires_grad
        }
        adam = build_optimizer(objective, config.optimizer, offload=config.train.zero.offload_optimizer)
        self._deepspeed, *_ = deepspeed.initialize(
            model=objective, optimizer=adam, config=deepspeed_config(config, ranks.size), dist_init_required=False
        )
        self._buffers = {name: b for name, b in objective.model.named_buffers() if name in self.shapes}
        set_timeouts()
        if config.train.compile:
            self._deepspeed.compile()
        self._parameters = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
        self._adam = self._deepspeed.basic_optimizer
        if isinstance(optimizer := self._deepspeed.optimizer, stage_1_and_2.DeepSpeedZeroOptimizer):
            # It would go through all gradients and wait for the device, to learn what their norm tells anyway.
            optimizer.check_overflow = lambda partition_gradients: None
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

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each parameter's gradient, after a step's last `backward`. Collective."""
        gradients = ((name, safe_get_full_grad(parameter)) for name, parameter in self._parameters.items())
        return {name: float(torch.linalg.vector_norm(grad, dtype=torch.float64)) for name, grad in gradients}

    def step(self, lr: float, loss: Tensor, judge: Judge) -> Update:
        """Update the weights at learning rate `lr` if `judge` has nothing against it.

        A step that is not applied changes nothing, moments and their step count included. Collective: ranks must give
        judges and losses (scalars on their devices) that are alike.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        decision = _Decision(loss, judge)
        if self.stage == 0:
            self._plain_step(decision)
        else:
            for module in (bf16_optimizer, stage_1_and_2, stage3):
                module.is_invalid_grad_norm = decision
            self._deepspeed.step()
        if decision.update.problem is not None and self.stage in (1, 2):
            self._forget_gradients()
        return decision.update

    def _plain_step(self, decision: _Decision) -> None:
        # Without ZeRO, DeepSpeed keeps no gradient norm in fp32 and applies steps that are not finite.
        # Added up in float64 like DeepSpeed's own: in fp32 it would be off by 1e-5 from 100,000 elements on.
        gradients = (p.grad for p in self._parameters.values() if p.grad is not None)
        norm = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in gradients]).norm()
        if decision(norm):
            self._deepspeed.zero_grad()
        else:
            self._deepspeed.step()

    def _forget_gradients(self) -> None:
        # Where the optimizer is offloaded, DeepSpeed adds the next step's bf16 gradients to those of a skipped one.
        optimizer = self._deepspeed.optimizer
        if isinstance(optimizer, stage_1_and_2.DeepSpeedZeroOptimizer):
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = None

    def pieces(self) -> Iterator[Piece]:
        """This rank's share of all weights and moments, live; all ranks' together hold every element exactly once."""
        for held in self._held():
            if self.stage == 0:  # where every rank holds everything
                held = self._share(held)
            if held.tensor.numel():
                yield held
        for name, tensor in self._frozen.items():
            if (share := self._share(Piece("weight", name, 0, tensor.view(-1)))).tensor.numel():
                yield share
        if self.ranks.is_main:  # each rank has running statistics of its own
            for name, buffer in self._buffers.items():
                yield Piece("weight", name, 0, buffer.detach().float().view(-1))

    def _share(self, piece: Piece) -> Piece:
        """This rank's part of what all ranks hold."""
        size = piece.tensor.numel()
        start, stop = (size * rank // self.ranks.size for rank in (self.ranks.rank, self.ranks.rank + 1))
        return Piece(piece.kind, piece.name, start, piece.tensor[start:stop])

    def restore(self, read: Callable[[Kind, str, int, int], Tensor]) -> None:
        """Set this rank's weights and moments from ``read(kind, name, start, stop)``, elements of flattened tensors.

        The low-precision copy for the forward pass stays as it is: give the task the weights before it is wrapped.
        """
        for held in self._held():
            held.tensor.copy_(read(held.kind, held.name, held.start, held.stop))

    def _held(self) -> Iterator[Piece]:
        """What this rank holds of every weight and moment, live."""
        for name, parameter in self._parameters.items():
            for kind in KINDS:
                yield Piece(kind, name, *self._held_of(parameter, kind))

    def _held_of(self, parameter: Any, kind: Kind) -> tuple[int, Tensor]:
        """(first element, elements) that this rank holds of a flattened weight or moment."""
        if self.stage == 0:
            whole = parameter if kind == "weight" else self._adam.state[parameter][kind]
            return 0, whole.detach().view(-1)
        key = None if kind == "weight" else kind
        if self.stage == 3:
            part, _ = self._deepspeed.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=key
            )
            start = part.numel() * self.ranks.rank
            # The last ranks' parts end with padding, or consist of it.
            return start, part.detach()[: max(0, parameter.ds_numel - start)]
        fragment = parameter._hp_mapping
        if fragment is None:
            return 0, parameter.new_empty(0, dtype=torch.float32)
        return fragment.lp_fragment_address.start, fragment.get_hp_fragment(key).detach()

    @property
    def adam_step(self) -> int:
        """Updates applied so far: what Adam's bias correction counts; LAMB has none."""
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


class _Decision:
    """Whether a step is skipped, in place of DeepSpeed's `is_invalid_grad_norm`, which all its optimizers ask.

    They do so where the host has to wait for the device anyway: the loss comes over with the norm, and what asks again
    in the same step waits no more.
    """

    def __init__(self, loss: Tensor, judge: Judge) -> None:
        self._loss, self._judge = loss, judge
        self._update: Update | None = None

    def __call__(self, norm: Tensor) -> bool:
        return self._decide(norm).problem is not None

    @property
    def update(self) -> Update:
        assert self._update is not None
        return self._update

    def _decide(self, norm: Tensor) -> Update:
        if self._update is None:
            loss, grad_norm = torch.stack([self._loss, norm.to(self._loss)]).tolist()
            if grad_norm < 0:  # as DeepSpeed writes norms that are not finite
                grad_norm = math.inf
            self._update = Update(self._judge(loss, grad_norm), loss, grad_norm)
        return self._update


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model: its parameters, each once, and its floating-point buffers."""
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: b for name, b in model.named_buffers() if name in persistent and b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def build_optimizer(objective: nn.Module, section: OptimizerSection, *, offload: bool) -> torch.optim.Optimizer:
    """AdamW or LAMB with weight decay on matrices only; on the host where the optimizer is offloaded."""
    matrices = {
        module.weight
        for name, module in objective.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) and not name.endswith("positions")
    }
    trained = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p in matrices], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p not in matrices], "weight_decay": 0.0},
    ]
    if section.kind == "lamb":
        from pytorch_optimizer import Lamb

        # The paper's (version 3): weight decay is part of the update that is scaled, and nothing is corrected for bias.
        options: dict[str, Any] = {"weight_decouple": False, "adam_debias": True}
        return Lamb(groups, lr=section.lr, betas=section.betas, eps=section.eps, **options)
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
