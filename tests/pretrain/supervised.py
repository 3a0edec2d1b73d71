"""A command with a supervisor over it. Each of its workers does the next entry of a plan.

Usage: supervised.py RUN_DIR MAX_RESTARTS PLAN. PLAN is a JSON list of [step to report or null, what to do then]: exit
with a code, ``kill`` itself, ``serve`` until a signal comes and exit with 75, ``sleep`` without handling signals, or
``fail`` once RUN_DIR/fail is there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from pretrain.distributed import supervisor
from pretrain.distributed.attempt import WORKER, report_step
from pretrain.distributed.stopping import SIGNALS


def work(run_dir: Path, plan: list) -> int:
    with (run_dir / "workers").open("a+") as log:
        log.write(f"{os.getpid()}\n")
        log.seek(0)
        step, action = plan[len(log.readlines()) - 1]
    if step is not None:
        report_step(step)
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "serve":
            received = []
            for number in SIGNALS:
                signal.signal(number, lambda number, frame: received.append(number))
            (run_dir / "ready").touch()
            while not received:
                time.sleep(0.02)
            (run_dir / "received").write_text(signal.Signals(received[0]).name)
            return 75
        case "sleep":
            (run_dir / "ready").touch()
            time.sleep(60)
        case "fail":
            (run_dir / "ready").touch()
            while not (run_dir / "fail").exists():
                time.sleep(0.02)
            return 1
    return action


if __name__ == "__main__":
    folder, restarts, plan = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    if WORKER in os.environ:
        sys.exit(work(folder, plan))
    supervisor.LONGEST_PAUSE = float(os.environ.get("PAUSE", "0.1"))
    sys.exit(supervisor.Supervisor([sys.executable, *sys.orig_argv[1:]], folder, restarts).run())
