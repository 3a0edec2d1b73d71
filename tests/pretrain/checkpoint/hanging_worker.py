"""A process whose disk never answers a background write, while its steps go on."""

import sys
import time
from pathlib import Path

import pretrain.checkpoint.saver
from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import Saver
from pretrain.config import CheckpointSection, WatchdogSection
from pretrain.distributed import Watchdog
from pretrain.saving import Saving
from tests.pretrain.checkpoint.stored_state import ALONE, CONFIG, StoredState, state_of


def dead_disk(*_):
    time.sleep(600)


def main(run: Path) -> None:
    pretrain.checkpoint.saver.write_share = dead_disk
    section = CheckpointSection(every=1)
    with Watchdog(WatchdogSection(save=1)) as watchdog:
        saver = Saver(run, section, ALONE, StoredState(PerceiverAR(CONFIG)))
        saving = Saving(section, saver, lambda: state_of(1), watchdog)
        saving.after_step(1)
        for step in range(2, 600):
            watchdog.enter(f"step {step}: beginning or finishing a checkpoint", "step")
            saving.tend(writing=saving.is_writing, due=False)
            time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
