"""A masked language model becomes a classifier: its encoder first stays as it is, then learns on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.config import load_config
from pretrain.errors import InputError
from pretrain.tasks import open_task
from pretrain.trained_run import TrainedRun

ROOT = Path(__file__).parents[3]
ENCODER = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1, "layers_per_block": 1}
READS = {"vocab_size": 262, "max_seq_len": 32, "num_input_channels": 8, "encoder": ENCODER}
CLASSES = {"digits": "0123456789 " * 4, "letters": "abcdefghij " * 4}


def write(path: Path, task: str, **sections) -> Path:
    """The configuration of a run into the folder ``<path>``."""
    run = {
        "task": task,
        "run": {"dir": str(path)},
        "train": {"steps": 8, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        "optimizer": {"lr": 1e-2},
        "evaluation": {"every": 0},
        "checkpoint": {"every": 4},
    }
    path.with_suffix(".yaml").write_text(json.dumps(run | sections))
    return path.with_suffix(".yaml")


def train(config: Path, *overrides: str) -> TrainedRun:
    command = [sys.executable, "pretrain/train.py", "--config", str(config), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return TrainedRun.find(config.with_suffix(""))


def weights(trained: TrainedRun, *parts: str) -> dict[str, torch.Tensor]:
    state = trained.model().state_dict()
    return {name: weight for name, weight in state.items() if name.split(".")[0] in parts}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys() != set()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for name, text in CLASSES.items():
        for split, count in (("train", 8), ("validation", 3)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number}.txt").write_text(text[number:])
    return root


@pytest.mark.slow
def test_from_masked_words_to_classes(tmp_path, corpus, texts):
    masking = {"unit": "whole_word", "fraction": 0.4}
    masked = train(write(tmp_path / "mlm", "masked_lm", model=READS, data={"corpus": str(corpus)}, masking=masking))
    validations = [json.loads(line) for line in (tmp_path / "mlm" / "metrics.jsonl").read_text().splitlines()]
    assert any(record["kind"] == "validation" and 0 <= record["accuracy"] <= 1 for record in validations)

    model = {"init_from": str(tmp_path / "mlm"), "num_classes": 2}
    data = {"folder": str(texts)}
    frozen = train(write(tmp_path / "frozen", "text_classification", model=model | {"freeze_encoder": True}, data=data))
    assert frozen.state["data"]["labels"] == ["digits", "letters"]
    reads = ("input_adapter", "encoder")
    assert same(weights(frozen, *reads), weights(masked, *reads))
    assert frozen.config.model.encoder == masked.config.model.encoder

    config = write(
        tmp_path / "whole", "text_classification", model=model | {"init_from": str(tmp_path / "frozen")}, data=data
    )
    run = load_config(config)
    assert list(open_task(run).problems(1)) == []
    objective = open_task(run).build()
    open_task(run).initialize(objective.model)
    assert same(dict(objective.model.state_dict()), dict(frozen.model().state_dict()))
    assert all(weight.requires_grad for weight in objective.parameters())
    misfit = load_config(config, ["run.dir=elsewhere", "model.encoder.num_latents=8"])
    assert list(open_task(misfit).problems(1)) == [
        f"model.encoder.num_latents: must be 4 for the weights of {tmp_path / 'frozen'}, not 8: leave it out"
    ]


def test_what_is_no_model_to_start_from_is_refused(tmp_path, texts):
    model = {"init_from": str(tmp_path / "gone"), "num_classes": 2}
    config = write(tmp_path / "run", "text_classification", model=model, data={"folder": str(texts)})
    with pytest.raises(InputError, match=r"^model.init_from: .*gone: no such folder"):
        load_config(config)
