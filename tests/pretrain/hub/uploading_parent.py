"""A run as its uploads see it: starts them, says that it does on standard output, and ends as it is told to.

``uploading_parent.py CONFIG [seconds]``: after so many seconds it is done; without, it never is.
"""

import sys
import time
from pathlib import Path

from pretrain.config import load_config
from pretrain.distributed.stopping import StopRequest
from pretrain.hub.process import start_uploads

if __name__ == "__main__":
    stop = StopRequest()
    uploads = start_uploads(load_config(Path(sys.argv[1])))
    assert uploads is not None
    print("started", flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 1000)
    uploads.finish(stop)
