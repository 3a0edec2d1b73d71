import json
import math
import resource
import threading
from contextlib import contextmanager

import pytest

from pretrain.config import load_config
from pretrain.errors import Unavailable
from pretrain.metrics import MetricsLog, console_line, read_records
from pretrain.tasks.causal_lm.config import CausalLMConfig, ModelSection

TRAIN = {
    "kind": "train",
    "step": 3,
    "trained_tokens": 300,
    "loss": 2.5,
    "bits_per_byte": 3.6,
    "lr": 1e-3,
    "grad_norm": 0.75,
    "tokens_per_second": 12345.6,
    "mfu": 0.345,
    "data_wait": 0.01,
    "memory_gib": 1.25,
    "skipped_steps": 0,
    "batch_hash": "00ff",
    "seconds": 9.5,
}
VALIDATION = {
    "kind": "validation",
    "step": 3,
    "trained_tokens": 300,
    "loss": 2.25,
    "accuracy": 0.4321,
    "perplexity": 9.49,
    "bits_per_byte": 3.25,
    "seconds": 9.75,
}


def run_config(folder, **logging):
    return CausalLMConfig(
        run={"dir": folder},
        model=ModelSection(vocab_size=262),
        data={"corpus": str(folder / "corpus")},
        train={"steps": 1000, "global_batch": 4, "micro_batch": 2},
        logging=logging,
    )


def test_records_are_readable_while_the_run_goes_on(tmp_path):
    log = MetricsLog(run_config(tmp_path), resumed_step=0)
    log.write(TRAIN)
    log.write(VALIDATION)
    assert read_records(tmp_path / "metrics.jsonl") == [TRAIN, VALIDATION]


def test_what_is_not_finite_is_null(tmp_path):
    log = MetricsLog(run_config(tmp_path), resumed_step=0)
    log.write(TRAIN | {"loss": math.nan, "grad_norm": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["loss"] is None and record["grad_norm"] is None


def test_resolved_configuration_is_kept(tmp_path):
    config = run_config(tmp_path)
    MetricsLog(config, resumed_step=0)
    assert load_config(tmp_path / "config.yaml", []) == config


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3, 3]), (9, [1, 2, 3, 3, 4])])
def test_resuming_forgets_later_records_and_a_cut_line(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    steps = [TRAIN | {"step": 1}, TRAIN | {"step": 2}, TRAIN, VALIDATION, TRAIN | {"step": 4}]
    path.write_text("".join(json.dumps(record) + "\n" for record in steps) + '{"kind": "tra')
    log = MetricsLog(run_config(tmp_path), resumed_step=step)
    assert steps_in(tmp_path) == kept
    log.write(TRAIN | {"step": 5})
    assert steps_in(tmp_path) == [*kept, 5]


def test_a_damaged_line_costs_that_line_only(tmp_path, capsys):
    """What a crashed node may leave of a line: zeros, bytes of others, a part."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(TRAIN | {"step": step}).encode() + b"\n" for step in (1, 2, 3, 4)]
    damaged = [bytes(40) + b"\n", b'{"kind": "train", "st\xff\xfe\n', b"17\n"]
    path.write_bytes(lines[0] + damaged[0] + lines[1] + b"".join(damaged[1:]) + lines[2] + damaged[0] + lines[3])
    log = MetricsLog(run_config(tmp_path), resumed_step=3)
    assert capsys.readouterr().err == f"warning: {path}: lines 2, 4, 5, 7 are damaged and left out\n"
    log.write(TRAIN | {"step": 4})
    log.write(TRAIN | {"step": 5})
    capsys.readouterr()
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err == f"warning: {path}: lines 2, 4, 5 are damaged and left out\n"
    assert path.read_bytes().startswith(lines[0] + damaged[0] + lines[1])


def test_records_that_cannot_be_read_now(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(path)
    with pytest.raises(Unavailable, match=r"metrics\.jsonl: cannot be read \(Too many levels"):
        read_records(path)


def test_later_records_are_forgotten_once_the_file_can_be_reached(tmp_path, capsys):
    path, away = tmp_path / "metrics.jsonl", tmp_path / "away"
    away.write_text("".join(json.dumps(TRAIN | {"step": step}) + "\n" for step in (1, 2, 3)))
    path.symlink_to(path)
    log = MetricsLog(run_config(tmp_path), resumed_step=2)
    log.write(TRAIN | {"step": 3, "loss": 7.0})
    assert capsys.readouterr().err.count("warning") == 1
    away.rename(path)
    log.sync()
    assert [(record["step"], record["loss"]) for record in read_records(path)] == [(1, 2.5), (2, 2.5), (3, 7.0)]


def steps_in(folder):
    """Steps of the records, of which none may be cut off."""
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line)["step"] for line in text.splitlines()]


@contextmanager
def room_for(size):
    """Files cannot grow beyond so many bytes: as on a full disk, a write stops halfway, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_delays_records(tmp_path, capsys):
    log = MetricsLog(run_config(tmp_path), resumed_step=0)
    for step in (1, 2):
        log.write(TRAIN | {"step": step})
    written = (tmp_path / "metrics.jsonl").stat().st_size
    for room, steps in ((written + 50, (3, 4, 5)), (written * 2, (6, 7))):
        with room_for(room):
            for step in steps:
                log.write(TRAIN | {"step": step})
                assert steps_in(tmp_path) == [1, 2]
    log.write(TRAIN | {"step": 8})
    assert steps_in(tmp_path) == [*range(1, 9)]
    [warning] = capsys.readouterr().err.splitlines()
    assert warning == (
        f"warning: {tmp_path / 'metrics.jsonl'}: File too large; records are kept until they can be written"
    )
    with room_for(written):
        log.write(TRAIN | {"step": 9})
    assert len(capsys.readouterr().err.splitlines()) == 1
    log.close()
    assert steps_in(tmp_path) == [*range(1, 10)]
    assert capsys.readouterr().err == ""


def test_a_disk_that_stays_full_costs_the_last_records_only(tmp_path, capsys):
    log = MetricsLog(run_config(tmp_path), resumed_step=0)
    log.write(TRAIN)
    with room_for((tmp_path / "metrics.jsonl").stat().st_size):
        log.write(VALIDATION)
        log.write(TRAIN | {"step": 4})
        log.close()
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"warning: {tmp_path / 'metrics.jsonl'}: the last 2 records could not be written, they are lost"
    ]
    assert read_records(tmp_path / "metrics.jsonl") == [TRAIN]


@pytest.mark.usefixtures("capsys")
def test_a_run_resumes_on_a_full_disk(tmp_path):
    log = MetricsLog(run_config(tmp_path), resumed_step=0)
    for step in (1, 2, 3):
        log.write(TRAIN | {"step": step})
    before = (tmp_path / "config.yaml").read_text()
    with room_for(100):
        log = MetricsLog(run_config(tmp_path, every=3), resumed_step=2)
        assert steps_in(tmp_path) == [1, 2]
        assert (tmp_path / "config.yaml").read_text() == before
        log.write(TRAIN)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl"]
    log.write(VALIDATION)
    assert read_records(tmp_path / "metrics.jsonl")[2:] == [TRAIN, VALIDATION]
    assert load_config(tmp_path / "config.yaml", []).logging.every == 3


def test_a_folder_that_is_gone_for_a_while(tmp_path, capsys):
    run, away = tmp_path / "run", tmp_path / "away"
    log = MetricsLog(run_config(run), resumed_step=0)
    log.write(TRAIN | {"step": 1})
    run.rename(away)
    run.write_text("in its place, so that it cannot be made anew")
    log.write(TRAIN | {"step": 2})
    log.write(TRAIN | {"step": 3})
    run.unlink()
    away.rename(run)
    log.write(TRAIN | {"step": 4})
    assert steps_in(run) == [1, 2, 3, 4]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_lost_connection_has_left_is_not_written_twice(tmp_path):
    """Where even removing it failed, the file ends with some of the records that are still to be written."""
    run, away = tmp_path / "run", tmp_path / "away"
    log = MetricsLog(run_config(run), resumed_step=0)
    log.write(TRAIN | {"step": 1})
    run.rename(away)
    run.touch()
    for step in (2, 3, 4):
        log.write(TRAIN | {"step": step})
    arrived = "".join(json.dumps(TRAIN | {"step": step}) + "\n" for step in (2, 3))
    with (away / "metrics.jsonl").open("a") as file:
        file.write(arrived[:-30])
    run.unlink()
    away.rename(run)
    log.write(TRAIN | {"step": 5})
    assert steps_in(run) == [1, 2, 3, 4, 5]


def test_a_removed_folder_is_made_anew(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    config = run_config(run)
    log = MetricsLog(config, resumed_step=0)
    for step in (1, 2, 3):
        log.write(TRAIN | {"step": step})
    run.rename(away)
    log.write(TRAIN | {"step": 4})
    assert steps_in(run) == [4]
    assert load_config(run / "config.yaml", []) == config
    # A mount that returns hides what was written beneath it, and nothing that it holds is lost.
    run.rename(tmp_path / "beneath")
    away.rename(run)
    log.write(TRAIN | {"step": 5})
    assert steps_in(run) == [1, 2, 3, 5]


def test_console_lines():
    assert console_line(TRAIN, steps=1000, eta=3725.4) == (
        "step    3/1000 | loss 2.5000 | 3.6000 bits/byte | lr 1.00e-03 | grad norm 0.75 | 12,346 tokens/s | MFU 34.5% "
        "| 1.25 GiB | ETA 1:02:05"
    )
    assert console_line(TRAIN | {"loss": None, "skipped_steps": 2}, 1000).split(" | ")[1:] == [
        "loss not finite",
        *console_line(TRAIN, 1000).split(" | ")[2:],
        "2 skipped",
    ]
    assert console_line(VALIDATION, 1000) == (
        "step    3/1000 | validation loss 2.2500 | 3.2500 bits/byte | perplexity 9.49 | accuracy 43.21%"
    )


def test_console_line_of_a_skipped_step():
    worst = [{"sample": 13, "loss": None}, {"sample": 12, "loss": 2.0}]
    record = {"kind": "skipped", "step": 3, "problem": "loss not finite", "loss": None, "grad_norm": None}
    assert console_line(record | {"samples": [12, 15], "worst_samples": worst}, 1000) == (
        "step    3/1000 | skipped: loss not finite | samples 12 to 15, worst 13"
    )


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(run_config(tmp_path, tensorboard=True), resumed_step=0)
    log.write(TRAIN)
    log.write(VALIDATION)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("val/bits_per_byte")] == [(3, 3.25)]
    assert "train/batch_hash" not in events.Tags()["scalars"]


def test_a_tracker_that_fails_is_dropped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda failure: None)  # of the thread that writes events
    log = MetricsLog(run_config(tmp_path, tensorboard=True), resumed_step=0)
    log.write(TRAIN)
    [events] = (tmp_path / "tensorboard").iterdir()
    with room_for(events.stat().st_size + 10):
        for step in (4, 5, 6):
            log.write(TRAIN | {"step": step})
    log.write(TRAIN | {"step": 7})
    log.close()
    assert steps_in(tmp_path) == [3, 4, 5, 6, 7]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: TensorBoard failed")]
    assert len(warnings) == 1 and "File too large" in warnings[0]


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path, capsys):
    (tmp_path / "tensorboard").touch()
    log = MetricsLog(run_config(tmp_path, tensorboard=True), resumed_step=0)
    log.write(TRAIN)
    log.close()
    assert steps_in(tmp_path) == [3]
    assert capsys.readouterr().err.startswith("warning: TensorBoard failed")


@pytest.mark.slow
def test_wandb_works_offline_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    log = MetricsLog(run_config(tmp_path / "run", wandb_project="demo"), resumed_step=0)
    log.write(TRAIN)
    log.close()
    [recorded] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in recorded.read_bytes()
