"""pretrain/train.py on a rank that kills itself. Usage: crashing_train.py WHERE ARGUMENTS...

WHERE is RANK:STEP:FILE: rank RANK kills itself in step STEP, as long as FILE does not exist; it creates it first,
unless FILE is empty.
"""

import os
import signal
import sys
from pathlib import Path

from pretrain import train
from pretrain.distributed.attempt import reported_step
from pretrain.engine import Engine
from pretrain.errors import run_command

_step = Engine.step


def crash_or_step(engine: Engine, *arguments: object) -> object:
    if os.environ.get("RANK", "0") == rank and reported_step() == int(step) and not (file and Path(file).exists()):
        if file:
            Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _step(engine, *arguments)


if __name__ == "__main__":
    # A launcher puts an option of its own in front.
    [where] = [argument for argument in sys.argv if argument.count(":") == 2][:1]
    sys.argv.remove(where)
    rank, step, file = where.split(":")
    Engine.step = crash_or_step
    run_command(train.main)
