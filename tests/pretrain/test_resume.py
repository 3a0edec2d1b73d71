"""A run that is stopped and goes on is the run that was not stopped."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("train_worker.py")
TRAIN = ("pretrain/train.py", "--config")
ALONE = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
IN_PAIRS = [("fp32", 1), ("fp32", 3), ("bf16", 2)]
CASES = [(1, *case) for case in ALONE] + [(2, *case) for case in IN_PAIRS]
CROSSINGS = [
    # from (ranks, stage), to (ranks, stage)
    ((2, 1), (1, 3)),
    ((1, 3), (1, 0)),
    ((2, 3), (1, 2)),
    ((1, 0), (2, 3)),
    ((1, 2), (2, 1)),
]
TIMED = {"seconds", "tokens_per_second", "mfu", "data_wait", "memory_gib"}


def name(ranks, precision, stage):
    return f"{ranks}-{precision}-zero{stage}"


def records(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def fields(ranks, precision, stage):
    """The run of one case: a global batch of 4 in two micro-batches of each rank."""
    chosen = {"train__precision": precision, "train__zero": {"stage": stage}, "train__micro_batch": 2 // ranks}
    if precision == "fp32":
        return chosen
    # Dropout within the model follows the split into micro-batches; an interval between logged steps spans step 10.
    return chosen | {"model__residual_dropout": 0.1, "logging__every": 4}


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
def runs(folder, write_run, start_ranks, finish_ranks):
    """Uninterrupted runs by name."""
    configs = {1: [], 2: []}
    for case in CASES:
        configs[case[0]].append(write_run(folder / name(*case), **fields(*case)))
    for processes in [start_ranks([WORKER, *paths], ranks) for ranks, paths in configs.items()]:
        finish_ranks(processes)
    return {name(*case): folder / name(*case) for case in CASES}


@pytest.fixture(scope="module")
def resumed(folder, runs, write_run, start_ranks, finish_ranks):
    """The same runs cut and gone on with in new processes, and such that cross over to other ranks and stages.

    The value is what the processes printed.
    """
    configs = {1: [runs[name(1, "fp32", 1)].with_suffix(".yaml")], 2: []}
    for case in CASES:
        copy = cut_after_step_10(runs[name(*case)], folder / f"{name(*case)}-resumed")
        configs[case[0]].append(write_run(copy, **fields(*case)))
    for (ranks, stage), (new_ranks, new_stage) in CROSSINGS:
        copy = cut_after_step_10(
            runs[name(ranks, "fp32", stage)], folder / f"{ranks}x{stage}-to-{new_ranks}x{new_stage}"
        )
        configs[new_ranks].append(write_run(copy, **fields(new_ranks, "fp32", new_stage)))
    started = [start_ranks([WORKER, *paths], ranks) for ranks, paths in configs.items()]
    return "\n".join(finish_ranks(processes) for processes in started)


@pytest.mark.parametrize(("ranks", "precision", "stage"), CASES)
def test_resuming_is_bitwise(runs, resumed, folder, ranks, precision, stage):
    run = name(ranks, precision, stage)
    expected, found = records(runs[run]), records(folder / f"{run}-resumed")
    assert found == expected
    assert found[-2]["step"] == 20
    assert found[-2]["loss"] < 0.9 * found[0]["loss"]
    for file in ("model.safetensors", "optimizer-exp_avg.safetensors", "optimizer-exp_avg_sq.safetensors"):
        last = Path("checkpoints", "step-00000020", file)
        assert (runs[run] / last).read_bytes() == (folder / f"{run}-resumed" / last).read_bytes()


@pytest.mark.parametrize(("before", "after"), CROSSINGS)
def test_resuming_elsewhere_goes_on_alike(runs, resumed, folder, before, after):
    expected = records(runs[name(before[0], "fp32", before[1])])
    found = records(folder / f"{before[0]}x{before[1]}-to-{after[0]}x{after[1]}")
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    for exact in ("step", "trained_tokens", "batch_hash"):
        assert [r.get(exact) for r in found] == [r.get(exact) for r in expected]


def test_finished_run_says_so_and_changes_nothing(runs, resumed):
    run = runs[name(1, "fp32", 1)]
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


def test_divergence_ends_with_code_3(tmp_path, write_run, start_ranks, finish_ranks):
    config = write_run(
        tmp_path / "run", optimizer__lr=1e30, stability__max_skipped_steps=3, train__gradient_clipping=0.0
    )
    output = finish_ranks(start_ranks([*TRAIN, config], 1), code=3)
    last = records(tmp_path / "run")[-1]
    assert last["skipped_steps"] >= 2
    assert last["loss"] is None
    assert "aborted: no update in 3 steps" in output
