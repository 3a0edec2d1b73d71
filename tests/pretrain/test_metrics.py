import json
import math

import pytest

from perceiver_ar.models.config import PerceiverARConfig
from pretrain.config import RunConfig, load_config
from pretrain.metrics import MetricsLog, console_line, drop_records_after, read_records

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
    "perplexity": 9.49,
    "bits_per_byte": 3.25,
    "seconds": 9.75,
}


def run_config(folder, **logging):
    return RunConfig(
        run={"dir": folder},
        model=PerceiverARConfig(vocab_size=262),
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
    drop_records_after(path, step)
    assert [record["step"] for record in read_records(path)] == kept
    log = MetricsLog(run_config(tmp_path), resumed_step=step)
    log.write(TRAIN | {"step": 5})
    assert [record["step"] for record in read_records(path)] == [*kept, 5]


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
        "step    3/1000 | validation loss 2.2500 | 3.2500 bits/byte | perplexity 9.49"
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


@pytest.mark.slow
def test_wandb_works_offline_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    log = MetricsLog(run_config(tmp_path / "run", wandb_project="demo"), resumed_step=0)
    log.write(TRAIN)
    log.close()
    [recorded] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in recorded.read_bytes()
