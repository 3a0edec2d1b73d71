"""One rank of `test_zero_equivalence.py`: trains the same model at every ZeRO stage; rank 0 saves what happened."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.config import WatchdogSection
from pretrain.corpus import Batch
from pretrain.distributed import Ranks, join, leave
from pretrain.engine import Engine
from pretrain.stability import not_finite
from pretrain.tasks.causal_lm.config import CausalLMConfig
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.training_step import train_step

SEED = 5
STEPS = 20
GLOBAL_BATCH = 8
CASES = [("fp32", stage, accumulation) for stage in (0, 1, 2, 3) for accumulation in (1, 4)]
CASES += [("bf16", stage, 4) for stage in (1, 2, 3)]
CLIP = 0.7
MODEL = PerceiverARConfig(
    vocab_size=9001,  # an embedding that ZeRO-3 shards (it leaves small parameters whole), unevenly
    max_seq_len=24,
    max_latents=8,
    num_channels=12,
    num_heads=2,
    num_layers=1,
    learned_positions=True,
    qkv_bias=True,
    norm="layernorm",
    prefix_dropout=0.3,
    z_loss=1e-2,
)
OPTIMIZER = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.3}


def global_batch(step: int) -> Batch:
    """Windows whose numbers of targets differ from row to row, some rows padded."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, MODEL.vocab_size, (GLOBAL_BATCH, MODEL.max_seq_len + 1), generator=generator)
    targets = tokens[:, -MODEL.max_latents :].clone()
    for row in range(GLOBAL_BATCH):
        targets[row, : (row * 3 + step) % 8] = -100
    valid = torch.ones(GLOBAL_BATCH, MODEL.max_seq_len, dtype=torch.bool)
    valid[step % 8, :5] = False
    documents = (torch.arange(valid.shape[1]) >= torch.arange(3, 3 + GLOBAL_BATCH)[:, None]).int()
    indices = torch.arange(GLOBAL_BATCH) + GLOBAL_BATCH * step
    return Batch(tokens[:, :-1], targets, valid, documents, indices)


def learning_rate(step: int) -> float:
    return OPTIMIZER["lr"] * (step + 1) / STEPS


def micro_batches(step: int, rank: int, ranks: int, size: int) -> list[Batch]:
    whole, mine = global_batch(step), GLOBAL_BATCH // ranks
    starts = range(rank * mine, (rank + 1) * mine, size)
    return [Batch(**{k: v[start : start + size] for k, v in vars(whole).items()}) for start in starts]


def make_engine(
    ranks: Ranks, precision: str, stage: int, accumulation: int, kind: type[Engine] = Engine, offload: bool = False
) -> tuple[CausalLM, Engine]:
    """The same model whatever the case, on an engine of its own."""
    config = CausalLMConfig(
        run={"dir": "unused", "seed": SEED},
        model=asdict(MODEL),
        data={"corpus": "unused"},
        train={
            "steps": STEPS,
            "global_batch": GLOBAL_BATCH,
            "micro_batch": GLOBAL_BATCH // ranks.size // accumulation,
            "precision": precision,
            "gradient_clipping": CLIP,
            "zero": {"stage": stage, "offload_optimizer": offload},
        },
        optimizer=OPTIMIZER,
    )
    torch.manual_seed(SEED)
    task = CausalLM(PerceiverAR(MODEL), SEED)
    engine = kind(task, config, ranks)
    engine.train()
    return task, engine


def main(output: Path) -> None:
    ranks = join(WatchdogSection())
    results = {}
    for precision, stage, accumulation in CASES:
        size = GLOBAL_BATCH // ranks.size // accumulation
        _, engine = make_engine(ranks, precision, stage, accumulation)
        losses, norms = [], []
        for step in range(STEPS):
            tokens = int((global_batch(step).targets != -100).sum())
            batches = micro_batches(step, ranks.rank, ranks.size, size)
            result = train_step(engine, batches, tokens, learning_rate(step), SEED, not_finite)
            assert result.problem is None
            losses.append(result.loss)
            norms.append(result.grad_norm)
        before = gather(engine)
        # A step that one rank alone spoils.
        spoilt = float("nan") if ranks.rank == ranks.size - 1 else tokens
        applied = train_step(engine, batches, spoilt, OPTIMIZER["lr"], SEED, not_finite).problem is None
        after = gather(engine)
        results[precision, stage, accumulation] = {
            "losses": losses,
            "norms": norms,
            "weights": {name: tensor for (name, kind), tensor in before.items() if kind == "weight"},
            "nan_applied": applied,
            "nan_changed": [key for key in before if not torch.equal(before[key], after[key])],
            "adam_step": engine.adam_step,
        }
    if ranks.is_main:
        torch.save(results, output)


def gather(engine: Engine) -> dict[tuple[str, str], torch.Tensor]:
    """Every weight and moment, whole, on every rank. Collective."""
    shares = engine.ranks.gather(
        [(piece.name, piece.kind, piece.start, piece.tensor.clone()) for piece in engine.pieces()]
    )
    whole = {}
    for name, kind, start, part in (piece for share in shares for piece in share):
        tensor = whole.setdefault((name, kind), torch.full(engine.shapes[name], torch.nan)).view(-1)
        held = tensor[start : start + len(part)]
        assert held.isnan().all(), "two ranks hold the same elements"
        held.copy_(part)
    assert not any(tensor.isnan().any() for tensor in whole.values()), "elements that no rank holds"
    return whole


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
