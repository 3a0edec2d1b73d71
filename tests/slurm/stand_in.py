"""Takes the place of `pretrain/train.py` where a job's own doings are tested.

Does what line i of its run's file ``plan`` says in attempt i: an exit code, `save` before it for a new checkpoint, and
`wait` before that for a signal to come first.
"""

import os
import signal
import sys
import time
from pathlib import Path

received: list[str] = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
run = Path(sys.argv[sys.argv.index("--config") + 1]).read_text().split("dir: ")[1].splitlines()[0]
attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
*actions, code = Path(run, "plan").read_text().splitlines()[attempt].split()
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "SLURMD_NODENAME")
print("rank", *(f"{name}={os.environ[name]}" for name in names), flush=True)
if "wait" in actions:
    while not received:
        time.sleep(0.05)
    print(f"received {received[0]}", flush=True)
if "save" in actions:
    Path(run, "checkpoints", f"step-{attempt + 1:08d}").mkdir(parents=True, exist_ok=True)
sys.exit(int(code))
