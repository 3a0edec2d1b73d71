"""Submit a run to SLURM, as a job that saves before its time limit, queues itself again and goes on."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress

import xxhash

from pretrain.command_line import ArgumentParser
from pretrain.config import RunConfig, dump_config, load_config
from pretrain.errors import DONE, InputError, run_command
from pretrain.preflight import check_run
from pretrain.version import VERSION_FILE, code_version
from slurm.health import LIMITS_GIB, BadLimit, limit_gib

CODE = ("perceiver_ar", "pretrain", "configs", "slurm")
USAGE = """\
submit.py one_node|many_nodes --config FILE [key.sub=value ...] [-- SBATCH OPTIONS]
       submit.py sweep --config FILE --sweep LINES [key.sub=value ...] [-- SBATCH OPTIONS]"""
EXAMPLES = """\
  python slurm/submit.py one_node --config configs/perceiver_ar_small_bytes.yaml -- --partition=gpu --time=2-0
  python slurm/submit.py many_nodes --config configs/perceiver_ar_long_65k.yaml train.zero.stage=2 -- --nodes=16
  python slurm/submit.py sweep --config configs/demo.yaml --sweep rates.txt run.dir=runs/rates -- --array=1-9%4

The job trains with a copy of the code and the resolved configuration, made now in the run directory. In a sweep each
line of LINES is a run, with the line's `key.sub=value` on top; run i is in run.dir/i unless its line says otherwise.
"""


def main(argv: Sequence[str]) -> int:
    arguments, options = parse(argv)
    check_limits()
    template = ROOT / "slurm" / f"{arguments.template}.sbatch"
    ranks = count_ranks(template, options)
    home = load_config(arguments.config, arguments.overrides).run.dir.absolute()
    runs = list(read_runs(arguments, home, ranks))
    submission = freeze(runs, home)
    log = home / "slurm-%j.log"
    if arguments.sweep is not None:
        log = home / "slurm-%A_%a.log"
        options = [f"--array=1-{len(runs)}", *options]
    try:
        job = submit(template, submission, [f"--job-name={job_name(home)}", f"--output={log}", *options])
    except InputError:
        withdraw(submission, runs, home)
        raise
    print(f"job {job}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {ranks} ranks")
    print(f"code and configuration  {submission}")
    print(f"log                     {str(log).replace('%j', job).replace('%A', job)}")
    return DONE


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(our arguments, those for sbatch)"""
    end = list(argv).index("--") if "--" in argv else len(argv)
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.usage = USAGE
    parser.add_argument("template", choices=("one_node", "many_nodes", "sweep"), help="slurm/TEMPLATE.sbatch")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument(
        "--sweep", type=Path, metavar="LINES", help="with sweep: a file with each run's overrides a line"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replaces a value of the file")
    arguments, unknown = parser.parse_known_intermixed_args(argv[:end])
    if unknown:
        raise InputError(f"{unknown[0]}: no option of submit.py, see --help; those for sbatch go behind --")
    if arguments.template == "sweep" and arguments.sweep is None:
        raise InputError("--sweep: is missing; it names the file with each run's overrides a line")
    if arguments.template != "sweep" and arguments.sweep is not None:
        raise InputError(f"--sweep: goes with the template sweep only, not with {arguments.template}")
    return arguments, list(argv[end + 1 :])


def check_limits() -> None:
    """Those of the health check come to the job from this environment: all its nodes would fail. Raises InputError."""
    try:
        for name in LIMITS_GIB:
            limit_gib(name)
    except BadLimit as error:
        raise InputError(str(error)) from None


def count_ranks(template: Path, options: Sequence[str]) -> int:
    """Tasks of the job that sbatch makes of a template and the options put behind it."""
    lines = template.read_text().splitlines()
    own = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    parser = ArgumentParser(description=None, examples="")
    parser.add_argument("-N", "--nodes", type=int)
    parser.add_argument("-n", "--ntasks", type=int)
    parser.add_argument("--ntasks-per-node", type=int)
    found, _ = parser.parse_known_args([*own, *options])
    return found.ntasks or found.nodes * found.ntasks_per_node


def read_runs(arguments: argparse.Namespace, home: Path, ranks: int) -> Iterator[RunConfig]:
    """The checked runs of a job: one, or those of the sweep's lines that are neither empty nor comments.

    Raises:
        InputError: A run could not start on so many ranks, or would write where another one does.
    """
    if arguments.sweep is None:
        yield _checked_run(arguments, (), ranks)
        return
    try:
        lines = arguments.sweep.read_text().splitlines()
    except OSError as error:
        raise InputError(f"--sweep: {arguments.sweep} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--sweep: {arguments.sweep} is not UTF-8 text") from None
    line_of: dict[Path, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            overrides = shlex.split(line, comments=True)
            if not overrides:
                continue
            run = _checked_run(arguments, (f"run.dir={home / str(len(line_of) + 1)}", *overrides), ranks)
        except (InputError, ValueError) as error:
            raise InputError(f"{arguments.sweep}, line {number}: {error}") from None
        if (other := line_of.setdefault(run.run.dir.absolute(), number)) != number:
            raise InputError(f"{arguments.sweep}, line {number}: run.dir {run.run.dir} is that of line {other}")
        yield run
    if not line_of:
        raise InputError(f"--sweep: {arguments.sweep} has no line with a run's overrides")


def _checked_run(arguments: argparse.Namespace, more: Sequence[str], ranks: int) -> RunConfig:
    run = load_config(arguments.config, [*arguments.overrides, *more])
    check_run(run, ranks)
    return run


def freeze(runs: Sequence[RunConfig], home: Path) -> Path:
    """Copy the code into the run directory `home`, and write what slurm/job.sh needs to know of each task.

    Beside the code: ``runs`` with a run directory a line, ``1.yaml``, ``2.yaml``, ..., and the code's version.
    """
    earlier = [int(path.name) for path in home.glob("submissions/[0-9]*")]
    submission = home / "submissions" / f"{max(earlier, default=0) + 1:03d}"
    submission.mkdir(parents=True)
    for name in CODE:
        shutil.copytree(ROOT / name, submission / name, ignore=shutil.ignore_patterns("__pycache__"))
    for number, run in enumerate(runs, start=1):
        (submission / f"{number}.yaml").write_text(dump_config(run))
        run.run.dir.mkdir(parents=True, exist_ok=True)
    (submission / "runs").write_text("".join(f"{run.run.dir.absolute()}\n" for run in runs))
    (submission / VERSION_FILE).write_text(json.dumps(dataclasses.asdict(code_version())))
    return submission


def withdraw(submission: Path, runs: Sequence[RunConfig], home: Path) -> None:
    """Undo `freeze`."""
    shutil.rmtree(submission)
    for folder in (submission.parent, *(run.run.dir for run in runs), home):
        with suppress(OSError):  # it holds something else, or is gone with one before
            folder.rmdir()


def job_name(home: Path) -> str:
    """By it a job waits for others of the same run directory: what people recognise, and what tells them apart."""
    return f"{home.name}-{xxhash.xxh32(str(home).encode()).hexdigest()}"


def submit(template: Path, submission: Path, options: Sequence[str]) -> str:
    """Hand the job to SLURM; returns its number."""
    command = ["sbatch", "--parsable", *options, str(template), str(submission), sys.executable]
    try:
        finished = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError("sbatch: no such command; submit from a host of the SLURM cluster") from None
    if finished.returncode:
        lines = [line.removeprefix("sbatch: error: ") for line in finished.stderr.splitlines()]
        raise InputError(f"sbatch: {'; '.join(lines)}")
    return finished.stdout.strip().split(";")[0]


if __name__ == "__main__":
    run_command(main)
