"""One rank of `test_topology.py`: trains and saves at some ZeRO stages (``save``), then restores at all (``load``)."""

import sys
from pathlib import Path

import torch

from pretrain.checkpoint import Saver, newest_whole, restore_checkpoint
from pretrain.config import CheckpointSection, WatchdogSection
from pretrain.distributed import Ranks, join, leave
from pretrain.stability import not_finite
from pretrain.training_step import train_step
from tests.pretrain.checkpoint.stored_state import state_of
from tests.pretrain.zero_worker import GLOBAL_BATCH, gather, global_batch, make_engine, micro_batches

STEPS = 2
SAVED = {1: [("fp32", 0)], 2: [("fp32", 0), ("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 2)]}
"""Ranks -> (precision, stage)."""
LOADED = [("fp32", 0), ("fp32", 2), ("fp32", 3), ("bf16", 1)]


def save(folder: Path, ranks: Ranks) -> None:
    for precision, stage in SAVED[ranks.size]:
        _, engine = make_engine(ranks, precision, stage, 1)
        for step in range(STEPS):
            tokens = int((global_batch(step).targets != -100).sum())
            batches = micro_batches(step, ranks.rank, ranks.size, GLOBAL_BATCH // ranks.size)
            train_step(engine, batches, tokens, 1e-2, 5, not_finite)
        run = folder / f"{ranks.size}-{precision}-{stage}"
        saver = Saver(run, CheckpointSection(), ranks, engine)
        saver.begin(state_of(STEPS), background=stage != 1)
        saver.wait()
        ranks.gather(None)
        assert saver.finish()
        whole = gather(engine)
        if ranks.is_main:
            torch.save(whole, run / "expected.pt")


def load(folder: Path, ranks: Ranks) -> None:
    for precision, stage in LOADED:
        _, engine = make_engine(ranks, precision, stage, 1)
        for size, saved in SAVED.items():
            for run in (folder / f"{size}-{precision}-{stage}" for precision, stage in saved):
                checkpoint = newest_whole(run, ranks)
                restore_checkpoint(checkpoint, engine)
                restored, expected = gather(engine), torch.load(run / "expected.pt")
                assert restored.keys() == expected.keys()
                differ = [key for key in expected if not torch.equal(restored[key], expected[key])]
                assert not differ, f"{run.name} at {ranks.size} ranks, stage {stage}: {differ}"
                assert engine.adam_step == STEPS
                if ranks.is_main:
                    print(f"{run.name} -> {ranks.size}-{precision}-{stage}")


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]), join(WatchdogSection()))
    leave(0)
