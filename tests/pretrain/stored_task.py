"""Run directories of all tasks as training leaves them, without the training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pretrain.checkpoint import Saver
from pretrain.config import CheckpointSection, read_config
from pretrain.tasks import open_task
from tests.pretrain.checkpoint.stored_state import ALONE, StoredState

STEP = 10
ENCODER = dict(num_latents=4, latent_channels=16, self_attention_heads=2, num_blocks=1, layers_per_block=1)
TEXT = dict(vocab_size=262, max_seq_len=32, num_input_channels=16, encoder=ENCODER)
CLASSES = {"bright": 200, "dark": 40, "gray": 120}


class SavedState(StoredState):
    """With running statistics, which are saved beside weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tensors["weight"] |= {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors["weight"].items()}


def store_task(
    run_dir: Path, task: str, model: dict[str, Any], data: dict[str, Any], **sections: Any
) -> torch.nn.Module:
    """`run_dir` with one checkpoint, whose model it returns, in evaluation mode."""
    run_dir.mkdir()
    train = {"steps": STEP, "global_batch": 2, "micro_batch": 2, "precision": "fp32"}
    fields = {"task": task, "run": {"dir": str(run_dir)}, "model": model, "data": data, "train": train}
    config = read_config(fields)
    opened = open_task(config)
    torch.manual_seed(STEP)
    trained = opened.build().model.eval()
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 10)  # norms, biases and statistics are part of a model
    engine = SavedState(trained)
    saver = Saver(run_dir, CheckpointSection(), ALONE, engine, saved_step=0)
    validation = {"step": STEP, "loss": 2.5, "accuracy": 0.25}
    state = {
        "step": STEP,
        "trained_targets": 20,
        "validation": validation,
        "config": config.model_dump(mode="json"),
        "data": opened.open_data(ALONE).describe(),
    }
    saver.begin(state, background=False)
    assert saver.finish()
    records = [{"kind": "validation", **validation, "step": step} for step in (5, STEP)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return trained


def image_folder(folder: Path) -> Path:
    """Noise around a brightness for each class, in two splits, larger than the model reads them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 3)):
        for name, level in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(level - 30, level + 30, (18, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def text_folder(folder: Path) -> Path:
    for split, count in (("train", 4), ("validation", 3)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / split / name / f"{number}.txt").write_text(f"{name} text {number * 7919} " * (number + 1))
    return folder


def store(task: str, folder: Path, corpus: Path) -> torch.nn.Module:
    """A tiny run of the task in ``folder/run``, with what data it needs beside it."""
    run_dir = folder / "run"
    if task == "masked_lm":
        return store_task(run_dir, task, TEXT, {"corpus": str(corpus)})
    if task == "text_classification":
        data = {"folder": str(text_folder(folder / "texts"))}
        return store_task(run_dir, task, TEXT | {"num_classes": 3}, data)
    if task == "image_classification":
        data = {"folder": str(image_folder(folder / "images")), "crop_fraction": 0.9}
        model = {"image_shape": [8, 8], "num_image_channels": 1, "num_classes": 3, "inputs": "conv", "encoder": ENCODER}
        return store_task(run_dir, task, model | {"num_frequency_bands": 2}, data)
    if task == "optical_flow":
        data = {"train": {"kind": "generated", "scenes": 40}}
        return store_task(run_dir, task, {"image_shape": [16, 24], "num_frequency_bands": 2, "encoder": ENCODER}, data)
    model = {
        "video_shape": [2, 8, 8],
        "video_patch": [1, 4, 4],
        "video_frequency_bands": 2,
        "num_audio_samples": 32,
        "audio_patch": 8,
        "audio_frequency_bands": 2,
        "num_classes": 12,
        "num_label_query_channels": 8,
        "num_output_channels": 8,
        "encoder": ENCODER,
    }
    return store_task(run_dir, "multimodal", model, {"synthetic": {"clips": 8, "validation_clips": 4}})
