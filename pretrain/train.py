"""Train a model: one YAML file is one run."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from pretrain.command_line import ArgumentParser
from pretrain.config import RunConfig, load_config
from pretrain.distributed.attempt import WORKER, reported_step
from pretrain.distributed.ending import at_end
from pretrain.distributed.stopping import StopRequest
from pretrain.distributed.supervisor import Supervisor
from pretrain.errors import ABORTED, DONE, STOPPED, InputError, TrainingAborted, run_command
from pretrain.outcome import next_attempt, read_outcome, write_outcome
from pretrain.output import keep_going_without_output
from pretrain.preflight import check_run, other_run
from pretrain.run_lock import hold_run
from pretrain.tasks import open_task

EXAMPLES = """\
  deepspeed pretrain/train.py --config configs/demo.yaml
  torchrun --nproc-per-node 8 pretrain/train.py --config configs/demo.yaml train.micro_batch=8
  python pretrain/train.py --config configs/demo.yaml run.dir=runs/second optimizer.lr=1e-3
  deepspeed pretrain/train.py --config configs/demo.yaml --max-restarts 5
  python pretrain/train.py --config configs/demo.yaml --dry-run --ranks 64 --tokens-per-second 2e6

Run the same command again to go on from the newest checkpoint in run.dir.
Exit codes: 0 done, 1 failed, 2 bad input, 3 training aborted, 75 stopped on request with what was done saved.
Launchers change them: outcome.json in run.dir has the run's own, and pretrain/status.py exits with it.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replaces a value of the file")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start a rank that fails again from the newest checkpoint, N times at most",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what the run costs, start nothing"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: processes (GPUs) of the run")
    parser.add_argument(
        "--tokens-per-second", type=float, metavar="R", help="with --dry-run: trained tokens of all ranks a second"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers add it
    arguments = parser.parse_intermixed_args(argv)
    for option, value in {"--ranks": arguments.ranks, "--tokens-per-second": arguments.tokens_per_second}.items():
        if value is not None and not arguments.dry_run:
            raise InputError(f"{option}: goes with --dry-run only")
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option}: must be greater than 0, not {value}")
    if arguments.max_restarts < 0:
        raise InputError(f"--max-restarts: must be at least 0, not {arguments.max_restarts}")
    return arguments


def main(argv: Sequence[str]) -> int:
    is_first_rank = os.environ.get("RANK", "0") == "0"
    try:
        arguments = parse(argv)
        ranks = arguments.ranks or int(os.environ.get("WORLD_SIZE", "1"))
        config = load_config(arguments.config, arguments.overrides)
        check(config, ranks, record=is_first_rank and not arguments.dry_run)
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of its node see the same
            raise
        return error.code
    if is_first_rank and WORKER not in os.environ:
        for doubt in open_task(config).doubts():
            print(f"warning: {doubt}", file=sys.stderr)
    if arguments.dry_run:
        if is_first_rank:
            from pretrain.dry_run import print_dry_run

            print_dry_run(config, ranks, arguments.tokens_per_second)
        return DONE
    keep_going_without_output()
    if WORKER not in os.environ:
        if is_first_rank:
            hold_run(config.run.dir)
        if arguments.max_restarts > 0:
            return Supervisor([sys.executable, *sys.orig_argv[1:]], config.run.dir, arguments.max_restarts).run()
    run(config, is_first_rank)


def check(config: RunConfig, ranks: int, *, record: bool) -> None:
    """`check_run`; a run that has an outcome, and cannot go on now, gets another one if `record`."""
    try:
        check_run(config, ranks)
    except InputError as error:
        run_dir = config.run.dir
        if record and read_outcome(run_dir) is not None and other_run(config) is None:
            if WORKER not in os.environ:
                hold_run(run_dir)  # the outcome may be that of a run under way
            write_outcome(run_dir, next_attempt(run_dir).with_end(error.code, None, str(error)))
        raise


def run(config: RunConfig, is_first_rank: bool) -> NoReturn:
    """Train, and end this process with what came of it."""
    stop = StopRequest()  # before anything slow: a signal now is not to end the process half-way
    if is_first_rank:
        outcome = next_attempt(config.run.dir)
        write_outcome(config.run.dir, outcome)
        at_end(lambda code, why: write_outcome(config.run.dir, outcome.with_end(code, reported_step(), why or None)))

    # Torch and DeepSpeed take seconds to import: bad input is not to wait for them.
    from pretrain.distributed import end_with

    end_with(lambda: take_part(config, stop, is_first_rank))


def take_part(config: RunConfig, stop: StopRequest, is_first_rank: bool) -> tuple[int, str]:
    """Exit code, and why the run did not come to its end."""
    from pretrain.hub.process import start_uploads
    from pretrain.loop import train

    uploads = start_uploads(config) if is_first_rank else None
    try:
        code = train(config, stop)
    except TrainingAborted as error:
        message = f"{error}; {start_again(config.run.dir)}"
        if is_first_rank:
            print(f"error: {message}", file=sys.stderr)
        return ABORTED, message
    if uploads is not None and code == DONE:
        uploads.finish(stop)
    return code, (stop.reason or "another rank was asked to stop") if code == STOPPED else ""


def start_again(run_dir: Path) -> str:
    """From where the same command would go on."""
    from pretrain.checkpoint import checkpoints_of

    newest = next(iter(checkpoints_of(run_dir)), None)
    return f"the newest checkpoint is {newest}" if newest is not None else "there is no checkpoint"


if __name__ == "__main__":
    run_command(main)
