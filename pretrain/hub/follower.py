"""The process that a run starts to upload its checkpoints; see `pretrain.hub.process` for what the two say."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pretrain.config import read_config
from pretrain.distributed.stopping import SIGNALS
from pretrain.errors import DONE, FAILED, InputError, run_command
from pretrain.hub.outbox import Outbox
from pretrain.hub.uploader import POLL_SECONDS, Uploader, warn
from pretrain.output import keep_going_without_output

FINISH = "finish\n"


def main(argv: Sequence[str]) -> int:
    keep_going_without_output()
    for number in SIGNALS:  # to all processes of a job: the run decides when it ends, and this one ends with it
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, not the run's own is to go
    config = read_config(json.loads(sys.stdin.readline()))
    assert config.hub is not None
    finishing = threading.Event()
    threading.Thread(target=_listen, args=(finishing,), daemon=True).start()
    try:
        uploader = Uploader(Outbox(config.run.dir, config.hub, config.train.steps))
        uploader.greet()
        while not finishing.is_set():
            with suppress(OSError):  # a disk that fails for a while: the run itself warns of it
                uploader.tend()
            finishing.wait(POLL_SECONDS)
        uploader.finish()
        while uploader.tend():
            time.sleep(POLL_SECONDS)
    except (InputError, OSError) as error:
        warn(str(error))
        return FAILED
    return DONE


def _listen(finishing: threading.Event) -> None:
    if sys.stdin.readline() == FINISH:
        finishing.set()
        sys.stdin.readline()
    os._exit(DONE)  # the run is gone or waits no longer; the next one takes up what is half sent


if __name__ == "__main__":
    run_command(main)
