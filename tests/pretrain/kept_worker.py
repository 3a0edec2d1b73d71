"""One rank of `test_engine_state.py`: an objective with frozen weights and running statistics, saved at every stage."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import RunConfig, WatchdogSection
from pretrain.distributed import Ranks, join, leave
from pretrain.engine import Engine
from pretrain.stability import not_finite
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput
from pretrain.training_step import train_step
from tests.pretrain.zero_worker import gather

STEPS, ROWS, CHANNELS = 5, 8, 12
OPTIMIZER = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
CASES = [("adamw", "fp32", stage) for stage in (0, 1, 2, 3)] + [("adamw", "bf16", 2), ("lamb", "fp32", 0)]


class Statistics(nn.BatchNorm1d):
    """In fp32, as DeepSpeed leaves buffers: torch takes no weights of another precision beside them."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight.float(), self.bias.float()
        moving = self.running_mean, self.running_var
        return F.batch_norm(x.float(), *moving, *weights, self.training, self.momentum).to(x.dtype)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(CHANNELS, CHANNELS).requires_grad_(False)
        self.statistics = Statistics(CHANNELS)
        self.trained = nn.Linear(CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.trained(self.statistics(self.frozen(x)).tanh())


class SquaredError(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, batch: ExampleBatch) -> TaskOutput:
        x = batch.tensors["x"].to(self.model.trained.weight.dtype)
        losses = (self.model(x).float() - batch.tensors["y"]).square()
        return TaskOutput(losses.sum(), losses.detach(), {})


def make_objective() -> SquaredError:
    torch.manual_seed(3)
    return SquaredError()


def batch_of(step: int, rank: int, ranks: int) -> ExampleBatch:
    """One rank's equal share of a step's rows: every rank has the same ones, so that its statistics are everybody's."""
    x = torch.randn(ROWS // ranks, CHANNELS, generator=torch.Generator().manual_seed(step))
    indices = torch.arange(len(x)) + step * ROWS + rank * len(x)
    return ExampleBatch({"x": x, "y": x.sum(1, keepdim=True)}, torch.ones(len(x), dtype=torch.int64), indices)


def train(ranks: Ranks, kind: str, precision: str, stage: int) -> Engine:
    config = RunConfig(
        task="causal_lm",
        run={"dir": "unused"},
        train={
            "steps": STEPS,
            "global_batch": ROWS,
            "micro_batch": ROWS // ranks.size,
            "precision": precision,
            "gradient_clipping": 0.0,
            "zero": {"stage": stage},
        },
        optimizer=OPTIMIZER | {"kind": kind},
    )
    engine = Engine(make_objective(), config, ranks)
    engine.train()
    for step in range(STEPS):
        result = train_step(
            engine, [batch_of(step, ranks.rank, ranks.size)], ROWS, OPTIMIZER["lr"], seed=0, judge=not_finite
        )
        assert result.problem is None
    return engine


def main(output: Path) -> None:
    ranks = join(WatchdogSection())
    results = {case: gather(train(ranks, *case)) for case in CASES}
    if ranks.is_main:
        torch.save(results, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
