"""One of two ranks of `test_ranks.py`: saves, the system refusing writes of one; writes what it saw as JSON."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import Saver, checkpoint_path, newest_whole
from pretrain.config import CheckpointSection, WatchdogSection
from pretrain.distributed import RanksError, join, leave
from tests.pretrain.checkpoint.stored_state import CONFIG, StoredState, refused_writes, state_of


def main(folder: Path) -> None:
    ranks = join(WatchdogSection())
    run = folder / "run"
    torch.manual_seed(0)
    engine = StoredState(PerceiverAR(CONFIG), ranks=ranks)
    saver = Saver(run, CheckpointSection(max_failures=2, keep=9), ranks, engine)
    seen: dict[str, object] = {}

    def save(step: int, background: bool, refused: int | None = None) -> bool:
        with refused_writes() if refused == ranks.rank else nullcontext():
            saver.begin(state_of(step), background)
            saver.wait()
        return saver.finish()

    seen["whole"] = [save(1, False), save(2, True)]
    seen["failed"] = [save(3, True, refused=1), save(4, True), save(5, False, refused=0)]
    seen["failures"], seen["saved_step"] = saver.failures, saver.saved_step
    try:
        save(6, True, refused=1)
    except RanksError as error:
        seen["fatal"] = str(error)
    saver.wait()
    ranks.gather(None)

    seen["newest"] = str(newest_whole(run, ranks))
    ranks.gather(None)
    if ranks.is_main:
        path = checkpoint_path(run, 4) / "rank-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    ranks.gather(None)
    seen["newest_undamaged"] = str(newest_whole(run, ranks))
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
