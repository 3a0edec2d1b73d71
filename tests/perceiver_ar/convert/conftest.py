"""Models as krasserm/perceiver-io leaves them, with the recorded weights of its 0.11.1."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

RECORDINGS = Path(__file__).parents[2] / "fixtures" / "perceiver-io-0.11.1"
MODEL_TYPES = {
    "csm_default": "perceiver-ar-causal-language-model",
    "csm_audio": "perceiver-ar-symbolic-audio-model",
}
TASK_TYPES = {
    "io_mlm": "perceiver-io-masked-language-model",
    "io_mlm_untied": "perceiver-io-masked-language-model",
    "io_text_classifier": "perceiver-io-text-classifier",
    "io_image": "perceiver-io-image-classifier",
    "io_flow": "perceiver-io-optical-flow",
}
CLASSES = {
    "io_mlm": ("TextEncoderConfig", "TextDecoderConfig"),
    "io_text_classifier": ("TextEncoderConfig", "ClassificationDecoderConfig"),
    "io_image": ("ImageEncoderConfig", "ClassificationDecoderConfig"),
}
"""Of the hyper-parameters `encoder` and `decoder` in Lightning checkpoints; it has trained no optical flow."""


class Recording:
    def __init__(self, name: str) -> None:
        self.name, self.model_type = name, (MODEL_TYPES | TASK_TYPES)[name]
        self.values = json.loads((RECORDINGS / f"{name}.json").read_text())
        self.tensors = load_file(RECORDINGS / f"{name}.safetensors")
        self.hparams = _group("hparams.", self.values) or _nested(_group("config.", self.values))
        self.weights = _group("state_dict.", self.tensors)
        self.classes = CLASSES.get(name, ())


def _group(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    parts = {part: _group(f"{part}.", values) for part in ("encoder", "decoder")}
    return {name: value for name, value in values.items() if "." not in name} | parts


@pytest.fixture(params=MODEL_TYPES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


@pytest.fixture
def text_model() -> Recording:
    """Of bytes."""
    return Recording("csm_default")


@pytest.fixture(params=TASK_TYPES)
def task_recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


@pytest.fixture
def recording_named() -> Callable[[str], Recording]:
    return Recording


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """write_folder(recording, format, **fields) -> a folder of its `save_pretrained`; fields of config.json on top."""

    def write(recording: Recording, form: str = "safetensors", **fields: Any) -> Path:
        folder = tmp_path / f"their-{form}"
        folder.mkdir()
        config = {"model_type": recording.model_type, "model_config": recording.hparams, "is_decoder": True}
        (folder / "config.json").write_text(json.dumps(config | fields))
        weights = {f"backend_model.{name}": tensor for name, tensor in recording.weights.items()}
        if form == "safetensors":
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            for shard in (0, 1):
                part = dict(list(weights.items())[shard::2])
                torch.save(part, folder / f"pytorch_model-0000{shard + 1}-of-00002.bin")
        return folder

    return write


@pytest.fixture(scope="session")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by what they are: each recording, and text models that were trained with some tokenizer."""
    folder = tmp_path_factory.mktemp("lightning")
    kinds: dict[str, tuple[str, str | None]] = {
        "csm_default": ("csm_default", None),
        "csm_audio": ("csm_audio", None),
        "bytes": ("csm_default", "deepmind/language-perceiver"),
        "xlnet": ("csm_default", "xlnet-base-cased"),
        **{name: (name, None) for name in CLASSES},
    }
    requests = []
    for kind, (name, tokenizer) in kinds.items():
        recording = Recording(name)
        save_file(recording.weights, weights := folder / f"{kind}.safetensors")
        content = dict(hparams=recording.hparams, weights=str(weights), tokenizer=tokenizer, classes=recording.classes)
        requests.append({"out": str(folder / f"{kind}.ckpt"), "content": content})
    command = [sys.executable, str(Path(__file__).with_name("write_lightning.py"))]
    subprocess.run(command, input=json.dumps(requests), text=True, check=True)
    return {kind: folder / f"{kind}.ckpt" for kind in kinds}
