"""Models to start from, in folders, on the Hub and in Lightning checkpoints: ours and perceiver-io's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver_ar.convert.perceiver_io import causal_sequence_model_config, causal_sequence_model_weights
from perceiver_ar.convert.pickles import load_pickle
from perceiver_ar.convert.weights import folder_weights, pickled_weights
from perceiver_ar.hub import MODEL_TYPE, local_folder, read_architecture, read_json
from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.perceiver_ar import PerceiverAR

TEXT = "perceiver-ar-causal-language-model"
AUDIO = "perceiver-ar-symbolic-audio-model"
AUDIO_VOCABULARY = 389
"""Notes on and off, time shifts, velocities, and padding, which is the last id."""

_NOT_YET = {
    "perceiver-io-masked-language-model": "a masked language model of krasserm/perceiver-io",
    "perceiver-io-text-classifier": "a text classifier of krasserm/perceiver-io",
    "perceiver-io-image-classifier": "an image classifier of krasserm/perceiver-io",
    "perceiver-io-optical-flow": "an optical flow model of krasserm/perceiver-io",
    "perceiver": "a Perceiver of transformers",
}
_NOT_YET_LIGHTNING = {
    ("TextEncoderConfig", "TextDecoderConfig"): "perceiver-io-masked-language-model",
    ("TextEncoderConfig", "ClassificationDecoderConfig"): "perceiver-io-text-classifier",
    ("ImageEncoderConfig", "ClassificationDecoderConfig"): "perceiver-io-image-classifier",
    ("OpticalFlowEncoderConfig", "OpticalFlowDecoderConfig"): "perceiver-io-optical-flow",
}
"""By the classes of the hyper-parameters `encoder` and `decoder`."""


@dataclass(frozen=True)
class SourceModel:
    """A model that has been found; its weights are still where they were."""

    name: str
    """What the user called it."""
    model_type: str
    """`MODEL_TYPE` for ours, `TEXT` or `AUDIO` for perceiver-io's."""
    architecture: PerceiverARConfig
    _read: Callable[[], Mapping[str, Tensor]]
    folder: Path | None = None
    """Where tokenizer and model card are, if the model has any; a Lightning checkpoint has none."""
    trained_with: str | None = None
    """The tokenizer that a Lightning checkpoint names."""

    def weights(self) -> Mapping[str, Tensor]:
        """All parameters of a `PerceiverAR` of this architecture, by name.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is damaged, or holds other weights than these.
        """
        weights = self._read()
        with torch.device("meta"):
            wanted = {name: tuple(p.shape) for name, p in PerceiverAR(self.architecture).named_parameters()}
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in [*wanted, *found]:
            ours, theirs = wanted.get(name, "absent"), found.get(name, "absent")
            if ours != theirs:
                raise ValueError(f"{self.name}: weight {name} is {theirs}, by the model's configuration {ours}")
        return weights


def open_source(name: str | Path) -> SourceModel:
    """The model in a folder, on the Hub (``owner/name[@revision]``), or in a Lightning checkpoint of perceiver-io.

    Nothing that is found there is executed.

    Raises:
        FileNotFoundError: there is no such model.
        ConnectionError: the Hub cannot be reached.
        ValueError: it is a model of another kind, or damaged.
    """
    return _in_checkpoint(Path(name)) if Path(name).is_file() else _in_folder(local_folder(name), str(name))


def _in_folder(folder: Path, name: str) -> SourceModel:
    file = folder / "config.json"
    config = read_json(file)
    model_type = config.get("model_type")
    if model_type == MODEL_TYPE:
        return SourceModel(
            name, model_type, read_architecture(folder), lambda: folder_weights(folder, "model."), folder
        )
    if model_type not in (TEXT, AUDIO):
        raise _refusal(file, model_type)
    architecture = _architecture(file, config.get("model_config"))

    def read() -> dict[str, Tensor]:
        return causal_sequence_model_weights(folder_weights(folder, "backend_model."), architecture)

    return SourceModel(name, model_type, architecture, read, folder)


def _in_checkpoint(path: Path) -> SourceModel:
    checkpoint = load_pickle(path)
    if not isinstance(checkpoint, Mapping) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"{path}: is no Lightning checkpoint with its hyper_parameters")
    hparams = checkpoint["hyper_parameters"]
    if isinstance(hparams, Mapping) and "encoder" in hparams:
        encoder, decoder = (type(hparams.get(part)).__name__ for part in ("encoder", "decoder"))
        raise _refusal(path, _NOT_YET_LIGHTNING.get((encoder, decoder), f"{encoder} and {decoder}"))
    architecture = _architecture(path, hparams)
    data = checkpoint.get("datamodule_hyper_parameters")
    named = data.get("tokenizer") if isinstance(data, Mapping) else None
    tokenizer = named if isinstance(named, str) else None
    is_audio = tokenizer is None and architecture.vocab_size == AUDIO_VOCABULARY

    def read() -> dict[str, Tensor]:
        weights = pickled_weights(path, checkpoint["state_dict"], "model.")
        return causal_sequence_model_weights(dict(weights), architecture)

    return SourceModel(str(path), AUDIO if is_audio else TEXT, architecture, read, trained_with=tokenizer)


def _refusal(path: Path, model_type: Any) -> ValueError:
    what = _NOT_YET.get(model_type, f"a model of type {model_type}")
    return ValueError(f"{path}: is {what}; what can be read so far are its causal language and symbolic audio models")


def _architecture(path: Path, hparams: Any) -> PerceiverARConfig:
    if not isinstance(hparams, Mapping) or "max_latents" not in hparams:
        raise ValueError(f"{path}: has no hyper-parameters of a causal model of krasserm/perceiver-io")
    try:
        return causal_sequence_model_config(hparams)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
