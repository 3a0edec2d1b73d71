"""Upload what is missing of a run's checkpoints, as its hub section says, then end. Runs do it by themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.command_line import ArgumentParser
from pretrain.config import CONFIG_FILE, load_config
from pretrain.errors import DONE, InputError, run_command
from pretrain.hub.outbox import Outbox
from pretrain.hub.uploader import POLL_SECONDS, Uploader

EXAMPLES = """\
  python -m pretrain.hub runs/demo
  python -m pretrain.hub runs/demo hub.repo=me/demo hub.every=1000
"""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m pretrain.hub", description=__doc__, examples=EXAMPLES)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="hub.key=value", help="replaces a value of its config.yaml")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    if not (run_dir / CONFIG_FILE).is_file():
        raise InputError(f"{run_dir}: no run directory, it has no {CONFIG_FILE}")
    config = load_config(run_dir / CONFIG_FILE, arguments.overrides)
    if config.hub is None:
        raise InputError(f"hub.repo: {run_dir / CONFIG_FILE} names no repository: add hub.repo=owner/name")
    uploader = Uploader(Outbox(run_dir, config.hub, config.train.steps))
    uploader.finish()
    try:
        if not uploader.tend():
            print(f"hub             nothing to upload to {config.hub.repo}", flush=True)
            return DONE
        while uploader.tend():
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)  # not to wait for a request under way, which the next time does not need
    return DONE


if __name__ == "__main__":
    run_command(main)
