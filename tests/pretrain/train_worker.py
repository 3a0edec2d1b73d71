"""One rank that trains the runs of the YAML files it is given, one after another, until one does not end as done."""

import sys
from pathlib import Path

from pretrain.config import load_config
from pretrain.distributed import StopRequest, leave
from pretrain.loop import train

if __name__ == "__main__":
    code, stop = 0, StopRequest()
    for path in sys.argv[1:]:
        if code == 0:
            code = train(load_config(Path(path)), stop)
    leave(code)
