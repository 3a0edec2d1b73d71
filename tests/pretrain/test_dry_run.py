"""What `--dry-run` prints, against numbers worked out by hand."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.config import load_config
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.dry_run import state_bytes
from pretrain.schema import validate
from pretrain.train import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over a corpus of 2,001 training tokens: 125 windows of 16 targets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for number in range(6):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number}" * 666)
    corpus = {"out": "corpus", "sources": [{"kind": "text", "root": "text"}], "validation_fraction": 0.5}
    manifest, _ = prepare_corpus(validate(PrepareConfig, corpus), Console(file=io.StringIO()))
    assert manifest.splits["train"].tokens == 2001
    config = {
        "run": {"dir": "run"},
        "model": {"vocab_size": 262, "max_seq_len": 64, "max_latents": 16, "num_channels": 32, "num_heads": 2},
        "data": {"corpus": "corpus"},
        "train": {"steps": 100, "global_batch": 8, "micro_batch": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def report(run_yaml: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> str:
        assert main(["--config", str(run_yaml), "--dry-run", *arguments]) == 0
        return capsys.readouterr().out

    return call


def row(text: str, name: str) -> list[str]:
    """The cells of the first row that begins with `name`."""
    [line, *_] = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}\s\s", line)]
    return re.split(r"\s{2,}", line.strip())[1:]


def test_resolved_configuration_can_be_run_again(report, tmp_path: Path, run_yaml: Path) -> None:
    text = report("optimizer.lr=1e-2", "model.preset=perceiver_io")
    (tmp_path / "again.yaml").write_text(text[: text.index("\nParameters")])
    expected = load_config(run_yaml, ["optimizer.lr=1e-2", "model.preset=perceiver_io"])
    assert load_config(tmp_path / "again.yaml") == expected


def test_sizes_of_the_run(report, run_yaml: Path) -> None:
    text = report("--ranks", "2")
    assert row(text, "global batch") == ["8 samples = 2 micro-batch x 2 accumulation x 2 ranks"]
    assert row(text, "trained tokens per step") == ["128"]
    assert row(text, "trained tokens") == ["12,800"]
    assert row(text, "corpus") == ["2,001", "125", "800", "6.40"]


def test_parameters_are_the_models(report, run_yaml: Path) -> None:
    model = PerceiverAR(load_config(run_yaml).model)
    [total] = row(report(), "total")
    assert int(total.replace(",", "")) == sum(p.numel() for p in model.parameters())


def test_parts_of_flops_add_up(report) -> None:
    text = report()
    text = text[text.index("FLOPs per trained token") :]
    parts = ["prefix", "cross-attention", "self-attention", "head", "masked halves of attention"]
    forward, training = (
        {part: float(row(text, part)[column].replace(",", "")) for part in [*parts, "total"]} for column in (0, 1)
    )
    assert sum(forward[part] for part in parts) == pytest.approx(forward["total"], abs=3)
    assert training["total"] == pytest.approx(3 * forward["total"], rel=1e-5)
    # 12,800 tokens: the row below shows three digits.
    assert float(row(text, "training FLOPs")[0]) == pytest.approx(12_800 * training["total"], rel=1e-2)


def test_state_bytes_by_hand() -> None:
    """A billion parameters on 8 ranks; ZeRO's table 1, plus fp32 accumulation."""
    billion = 10**9

    def gigabytes(stage: int, precision: str) -> list[float]:
        return [size / billion for size in state_bytes(billion, stage=stage, ranks=8, precision=precision).values()]

    # weights, gradients, fp32 accumulated gradients, fp32 master weights, Adam moments
    assert gigabytes(1, "bf16") == [2, 2, 4, 0.5, 1]
    assert gigabytes(2, "bf16") == [2, 0.25, 0.5, 0.5, 1]
    assert gigabytes(3, "bf16") == [0.25, 0.25, 0.5, 0.5, 1]
    assert gigabytes(0, "fp32") == [4, 4, 0, 0, 8]
    assert gigabytes(3, "fp32") == [0.5, 0.5, 0, 0.5, 1]


def test_memory_that_is_offloaded_does_not_count_for_the_device(report) -> None:
    wide = ["model.num_channels=2048", "train.zero.stage=3"]
    plain = report(*wide)
    offloaded = report(*wide, "train.zero.offload_optimizer=true", "train.zero.offload_parameters=true")
    stage_3 = 3
    assert row(offloaded, "Adam moments")[stage_3] == row(plain, "Adam moments")[stage_3] + " on host"
    assert "on host" not in row(offloaded, "Adam moments")[0]
    on_host = [float(row(plain, kind)[stage_3]) for kind in ("weights", "fp32 master weights", "Adam moments")]
    device = float(row(plain, "total on the device")[stage_3]) - sum(on_host)
    assert float(row(offloaded, "total on the device")[stage_3]) == pytest.approx(device, abs=0.003)


def test_time_at_a_given_throughput(report) -> None:
    assert row(report("--tokens-per-second", "1000"), "as given") == ["1,000", "12.8 s"]
    assert row(report("--tokens-per-second", "0.5"), "as given")[1] == "7 h 07 min"


def test_time_on_named_accelerators_follows_from_their_flops(report) -> None:
    text = report("--ranks", "4")
    flops = float(row(text[text.index("FLOPs per") :], "total")[1].replace(",", ""))
    rate, _ = row(text, "4 x H100 SXM at 40% MFU")
    assert float(rate.replace(",", "")) == pytest.approx(0.4 * 4 * 989e12 / flops, rel=1e-3)


ENCODER = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1, "layers_per_block": 1}
READS = {"vocab_size": 262, "max_seq_len": 32, "num_input_channels": 8, "encoder": ENCODER}


@pytest.mark.parametrize(
    ("task", "model", "data", "targets"),
    [
        ("masked_lm", READS, {"corpus": "corpus"}, "38"),  # 15 % of 8 x 32
        ("text_classification", READS | {"num_classes": 2}, {"folder": "texts"}, "8"),
        ("optical_flow", {"image_shape": [8, 12], "encoder": ENCODER}, {"train": {"kind": "generated"}}, "1,536"),
    ],
)
def test_every_task_tells_its_costs(
    task: str, model: dict, data: dict, targets: str, report, run_yaml: Path, tmp_path: Path
) -> None:
    for name in ("train/a", "train/b", "validation/a", "validation/b"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "texts" / name / f"{number}.txt").write_text(name)
    run = yaml.safe_load(run_yaml.read_text()) | {"task": task, "model": model, "data": data}
    run_yaml.write_text(yaml.safe_dump(run))
    printed = report()
    unit = {"masked_lm": "tokens", "text_classification": "texts", "optical_flow": "pixels"}[task]
    assert row(printed, f"trained {unit} per step") == [targets]
    assert "activations" not in printed  # which are not known


def test_nothing_is_created_and_no_gpu_is_needed(run_yaml: Path) -> None:
    before = sorted(os.listdir(run_yaml.parent))
    command = [sys.executable, str(ROOT / "pretrain" / "train.py"), "--config", "run.yaml", "--dry-run"]
    # A launcher's environment for rank 1 of 2: nothing may wait for rank 0, or print.
    ranks = [{"RANK": rank, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""} for rank in "01"]
    outputs = [
        subprocess.run(command, env=os.environ | rank, capture_output=True, text=True, timeout=60, check=True).stdout
        for rank in ranks
    ]
    assert "x 2 ranks" in outputs[0] and "\x1b" not in outputs[0]
    assert outputs[1] == ""
    assert sorted(os.listdir(run_yaml.parent)) == before
