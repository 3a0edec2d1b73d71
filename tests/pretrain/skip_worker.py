"""One rank of `test_skipped_steps.py`: skips steps at every ZeRO stage and saves what came of them."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zero_worker import GLOBAL_BATCH, SEED, gather, global_batch, learning_rate, make_engine, micro_batches

from pretrain.config import WatchdogSection
from pretrain.corpus import Batch
from pretrain.distributed import Ranks, join, leave
from pretrain.engine import Engine, Judge, Update
from pretrain.stability import not_finite
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.training_step import count_targets, skipped_record, train_step

ACCUMULATION = 2
CASES = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
REFUSAL = "not wanted"

Spoiling = Callable[[CausalLM], AbstractContextManager[None]]
"""Of the steps taken within it."""


def spoil_output(find: Callable[[CausalLM], nn.Module], spoil: Callable[[Any], Any]) -> Spoiling:
    @contextmanager
    def spoiling(task: CausalLM) -> Iterator[None]:
        handle = find(task).register_forward_hook(lambda module, inputs, output: spoil(output))
        yield
        handle.remove()

    return spoiling


def spoil_gradient(output: Tensor) -> Tensor:
    output.register_hook(lambda gradient: gradient * math.inf)
    return output


SPOILT = {
    "embedding": spoil_output(lambda task: task.model.embed, lambda output: output * math.nan),
    "layer": spoil_output(lambda task: task.model.self_attention[0].mlp, lambda output: output * math.inf),
    "gradient": spoil_output(lambda task: task.model.self_attention[0].mlp, spoil_gradient),
    "loss": spoil_output(lambda task: task, lambda output: output._replace(loss_sum=output.loss_sum * math.nan)),
    "reported loss": spoil_output(lambda task: task, lambda output: output._replace(losses=output.losses * math.nan)),
}


class WatchedEngine(Engine):
    """Knows the gradient norms of its last step."""

    def step(self, *arguments: Any) -> Update:
        self.norms = self.gradient_norms()
        return super().step(*arguments)


def batch_of(number: int, ranks: Ranks) -> tuple[list[Batch], int]:
    """This rank's micro-batches of a step, and the targets of all ranks."""
    size = GLOBAL_BATCH // ranks.size // ACCUMULATION
    return micro_batches(number, ranks.rank, ranks.size, size), count_targets([global_batch(number)])


def step(engine: Engine, number: int, judge: Judge = not_finite) -> dict[str, Any]:
    batches, tokens = batch_of(number, engine.ranks)
    result = train_step(engine, batches, tokens, learning_rate(number), SEED, judge)
    record = None if result.problem is None else skipped_record(number + 1, result, batches, engine.ranks)
    return {"problem": result.problem, "loss": result.loss, "grad_norm": result.grad_norm, "record": record}


def changed(before: dict[Any, Tensor], after: dict[Any, Tensor]) -> list[str]:
    return [str(key) for key in before if not torch.equal(before[key], after[key])]


def try_case(ranks: Ranks, precision: str, stage: int, offload: bool) -> dict[str, Any]:
    task, engine = make_engine(ranks, precision, stage, ACCUMULATION, WatchedEngine, offload)
    for number in (0, 1):
        step(engine, number)
    before = gather(engine)
    results = {"refused": step(engine, 2, lambda loss, grad_norm: REFUSAL)}
    results["refused"]["changed"] = changed(before, gather(engine))
    for place, spoiling in SPOILT.items():
        with spoiling(task) if ranks.rank == ranks.size - 1 else nullcontext():
            results[place] = step(engine, 2)
        results[place]["changed"] = changed(before, gather(engine))
    results["adam_step"] = engine.adam_step
    results["next"] = [step(engine, 3), step(engine, 4)]
    results["gradient_norms"] = engine.norms

    _, undisturbed = make_engine(ranks, precision, stage, ACCUMULATION, offload=offload)
    results["undisturbed"] = [step(undisturbed, number) for number in (0, 1, 3, 4)]
    results["differs"] = changed(gather(undisturbed), gather(engine))
    return results


def main(output: Path, offload: bool) -> None:
    ranks = join(WatchdogSection())
    cases = [(precision, stage) for precision, stage in CASES if stage > 0 or not offload]
    results = {f"{precision}-zero{stage}": try_case(ranks, precision, stage, offload) for precision, stage in cases}
    output.with_name(f"{output.name}-{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), offload="offload" in sys.argv[2:])
    leave(0)
