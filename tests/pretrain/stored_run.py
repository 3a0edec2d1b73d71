"""A run directory as training leaves it, without the training."""

import json
from pathlib import Path
from typing import Any

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import Saver, checkpoint_path
from pretrain.config import CheckpointSection
from pretrain.data import describe_data, open_corpora
from pretrain.schema import validate
from pretrain.tasks.causal_lm.config import CausalLMConfig
from tests.pretrain.checkpoint.stored_state import StoredState

MODEL = {"vocab_size": 262, "max_seq_len": 64, "max_latents": 16, "num_channels": 32, "num_heads": 2, "num_layers": 2}
TRAIN = {"steps": 20, "global_batch": 4, "micro_batch": 4, "precision": "fp32"}


def store_run(run_dir: Path, data: dict[str, Any], steps: tuple[int, ...] = (10, 20), **model: Any) -> Path:
    """`run_dir` with checkpoints of `steps`, each with weights drawn by its step and a validation of its own."""
    run_dir.mkdir(exist_ok=True)
    fields = {"run": {"dir": str(run_dir)}, "model": MODEL | model, "data": data, "train": TRAIN}
    config = validate(CausalLMConfig, fields)
    described = describe_data(open_corpora(config))
    with (run_dir / "metrics.jsonl").open("w") as metrics:
        for step in steps:
            validation = {"step": step, "loss": 6 - step / 20, "perplexity": 148.4, "bits_per_byte": 8 - step / 20}
            metrics.write(json.dumps({"kind": "validation", **validation}) + "\n")
            engine = StoredState(initial_model(config, step))
            saver = Saver(run_dir, CheckpointSection(keep=2), engine.ranks, engine, saved_step=step - 10)
            state = {
                "step": step,
                "trained_targets": step * 64,
                "validation": validation,
                "config": config.model_dump(mode="json"),
                "data": described,
            }
            saver.begin(state, background=False)
            assert saver.finish()
    return run_dir


def weights_of(run_dir: Path, step: int) -> PerceiverAR:
    """The model of a stored run's checkpoint, built anew instead of read."""
    state = json.loads((checkpoint_path(run_dir, step) / "state.json").read_text())
    return initial_model(validate(CausalLMConfig, state["config"]), step)


def initial_model(config: CausalLMConfig, seed: int) -> PerceiverAR:
    torch.manual_seed(seed)
    return PerceiverAR(config.model.architecture).eval()
