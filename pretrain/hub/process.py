"""A run's side of its uploads: they happen in another process, so that nothing of them can hold up a step.

That process reads the run's configuration from its standard input, then, once the last checkpoint is there, one more
line. Where its input ends, the run has ended, however it did, and so does it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from pretrain.config import HubSection, RunConfig
from pretrain.distributed.attempt import WORKER
from pretrain.distributed.stopping import StopRequest
from pretrain.hub.follower import FINISH
from pretrain.hub.uploader import warn

ROOT = Path(__file__).parents[2]
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", WORKER)
"""What makes a process one of a run."""


def start_uploads(config: RunConfig) -> UploadProcess | None:
    """None where the run wants none, or the system refuses to start it, which is a warning."""
    if config.hub is None:
        return None
    try:
        return UploadProcess(config, config.hub)
    except OSError as error:
        warn(f"nothing will be uploaded, its process does not start: {error.strerror}; training goes on")
        return None


class UploadProcess:
    def __init__(self, config: RunConfig, section: HubSection) -> None:
        """Raises OSError."""
        self._section, self._run_dir = section, config.run.dir
        self._is_ending = False
        self._process = subprocess.Popen(
            # -P: what lies in the current folder is not to be imported.
            [sys.executable, "-P", "-m", "pretrain.hub.follower"],
            env=_environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the run
            text=True,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)
        self._say(config.model_dump_json() + "\n")
        threading.Thread(target=self._notice_end, name="uploads", daemon=True).start()

    def finish(self, stop: StopRequest) -> None:
        """Wait until all is uploaded: `hub.final_wait` seconds, until it fails for good, or `stop` is asked for."""
        seconds = self._section.final_wait
        print(f"hub             waiting for the uploads to {self._section.repo}, {seconds:g} s at most", flush=True)
        self._is_ending = True
        deadline = time.monotonic() + seconds
        try:
            self._say(FINISH)
        except OSError:  # it has died: its exit code tells
            deadline = 0.0
        while self._process.poll() is None and not stop and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._process.poll() != 0:
            self._process.kill()  # what is half sent is taken up; it is to say nothing behind the run's last words
            warn(f"not everything is uploaded: `python -m pretrain.hub {self._run_dir}` does the rest")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _notice_end(self) -> None:
        if self._process.wait() and not self._is_ending:
            warn("the process that uploads has ended; training goes on, and starts another when it is started again")


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return own | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
