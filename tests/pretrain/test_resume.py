"""A run that is stopped and goes on is the run that was not stopped."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

WORKER = Path(__file__).with_name("train_worker.py")
TRAIN = ("pretrain/train.py", "--config")


class Case(NamedTuple):
    ranks: int
    stage: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}-ranks{self.ranks}-zero{self.stage}"


CASES = [
    *(Case(1, stage, "fp32") for stage in range(4)),
    *(Case(1, stage, "bf16") for stage in (1, 2, 3)),
    *(Case(2, stage, "fp32") for stage in (1, 3)),
    Case(2, 2, "bf16"),
    Case(1, 1, "everything"),
    Case(2, 2, "everything"),
]
CROSSINGS = [
    (Case(2, 1, "fp32"), Case(1, 3, "fp32")),
    (Case(1, 3, "fp32"), Case(1, 0, "fp32")),
    (Case(2, 3, "fp32"), Case(1, 2, "fp32")),
    (Case(1, 0, "fp32"), Case(2, 3, "fp32")),
    (Case(1, 2, "fp32"), Case(2, 1, "fp32")),
    (Case(1, 1, "everything"), Case(2, 3, "everything")),
    (Case(2, 2, "everything"), Case(1, 1, "everything")),
]
FINISHED = Case(1, 1, "fp32")
TIMED = {"seconds", "tokens_per_second", "mfu", "data_wait", "memory_gib"}


def records(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def cut_after_step_10(run: Path, copy: Path) -> Path:
    """What is left of a run that was killed between steps 14 and 15, after it had recorded more steps than it saved."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000020")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    recorded = [line for line in lines if json.loads(line)["step"] <= 14]
    (copy / "metrics.jsonl").write_text("".join(recorded) + lines[-1][:20])
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def write_case(write_run, mixture):
    """Writes the YAML file of a case: a run with a global batch of 4, accumulated on each rank."""
    kinds = {
        "fp32": {},
        # An interval between logged steps spans step 10.
        "bf16": {"train__precision": "bf16", "model__residual_dropout": 0.1, "logging__every": 4},
        "everything": {
            "model__attention_dropout": 0.1,
            "model__residual_dropout": 0.1,
            "schedule__kind": "wsd",
            "schedule__decay_steps": 6,
            "stability__window": 8,  # that many steps are remembered, and judged by
            # Dropout within the model follows the split into micro-batches: this one is the same on 1 and 2 ranks.
            "train__micro_batch": 1,
            **mixture,
        },
    }

    def write(case, run):
        split = {"train__micro_batch": 2 // case.ranks, "train__zero": {"stage": case.stage}}
        return write_run(run, **split | kinds[case.kind])

    return write


@pytest.fixture(scope="module")
def runs(folder, write_case, start_ranks, finish_ranks):
    """Uninterrupted runs by case."""
    configs = {1: [], 2: []}
    for case in CASES:
        configs[case.ranks].append(write_case(case, folder / str(case)))
    for processes in [start_ranks([WORKER, *paths], ranks) for ranks, paths in configs.items()]:
        finish_ranks(processes)
    return {case: folder / str(case) for case in CASES}


@pytest.fixture(scope="module")
def resumed(folder, runs, write_case, start_ranks, finish_ranks):
    """The same runs cut and gone on with in new processes, and such that cross over to other ranks and stages.

    The value is what the processes printed.
    """
    configs = {1: [runs[FINISHED].with_suffix(".yaml")], 2: []}
    for case in CASES:
        copy = cut_after_step_10(runs[case], folder / f"{case}-resumed")
        configs[case.ranks].append(write_case(case, copy))
    for before, after in CROSSINGS:
        copy = cut_after_step_10(runs[before], folder / f"{before}-to-{after}")
        configs[after.ranks].append(write_case(after, copy))
    started = [start_ranks([WORKER, *paths], ranks) for ranks, paths in configs.items()]
    return "\n".join(finish_ranks(processes) for processes in started)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_is_bitwise(runs, resumed, folder, case):
    copy = folder / f"{case}-resumed"
    expected, found = records(runs[case]), records(copy)
    assert found == expected
    assert found[-2]["step"] == 20
    assert found[-2]["loss"] < 0.9 * found[0]["loss"]
    for rank in range(case.ranks):
        last = Path("checkpoints", "step-00000020", f"rank-{rank:05d}.safetensors")
        assert (runs[case] / last).read_bytes() == (copy / last).read_bytes()


@pytest.mark.parametrize(("before", "after"), CROSSINGS, ids=str)
def test_resuming_elsewhere_goes_on_alike(runs, resumed, folder, before, after):
    expected, found = records(runs[before]), records(folder / f"{before}-to-{after}")
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    for exact in ("step", "lr", "trained_tokens", "batch_hash", "epochs"):
        assert [r.get(exact) for r in found] == [r.get(exact) for r in expected]


def test_finished_run_says_so_and_changes_nothing(runs, resumed):
    run = runs[FINISHED]
    assert f"already done: {run / 'checkpoints' / 'step-00000020'} has 20 of 20 steps" in resumed


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_signal_to_one_rank_stops_all_with_a_checkpoint(tmp_path, write_run, start_ranks, finish_ranks, number):
    config = write_run(
        tmp_path / "run", train__micro_batch=1, train__steps=100_000, checkpoint__every=0, evaluation__every=0
    )
    processes = start_ranks([*TRAIN, config], 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)
    processes[1].send_signal(number)
    output = finish_ranks(processes, code=75)
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    last = records(tmp_path / "run")[-1]["step"]
    assert checkpoint.name == f"step-{last:08d}"
    assert f"stopped on request after step {last}" in output


@pytest.mark.parametrize(
    ("every", "newest"),
    [
        (3, "the newest checkpoint is {run}/checkpoints/step-00000003"),
        pytest.param(100, "there is no checkpoint", marks=pytest.mark.slow),
    ],
)
def test_divergence_ends_with_code_3(tmp_path, write_run, start_ranks, finish_ranks, every, newest):
    fields = {"optimizer__lr": 1e30, "stability__max_skipped_steps": 3, "train__gradient_clipping": 0.0}
    config = write_run(tmp_path / "run", **fields, checkpoint__every=every)
    output = finish_ranks(start_ranks([*TRAIN, config], 1), code=3)
    last = records(tmp_path / "run")[-1]
    assert last["skipped_steps"] >= 2
    assert last["loss"] is None
    assert "error: aborted after step 4: no update in steps 2 to 4" in output
    assert f"; {newest.format(run=tmp_path / 'run')}\n" in output
