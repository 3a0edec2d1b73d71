"""Models to start from, in folders, on the Hub and in Lightning checkpoints: ours, perceiver-io's, transformers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from perceiver_ar.convert.images import processor_size
from perceiver_ar.convert.modules import Architecture, weight_shapes
from perceiver_ar.convert.names import COUNTED_BATCHES, renamed
from perceiver_ar.convert.perceiver_io import causal_sequence_model_config, causal_sequence_model_weights
from perceiver_ar.convert.perceiver_io_tasks import (
    COMPUTED_ON_USE,
    LIGHTNING_CLASSES,
    PERCEIVER_IO_TASKS,
    perceiver_io_task_config,
    perceiver_io_task_names,
)
from perceiver_ar.convert.pickles import load_pickle
from perceiver_ar.convert.transformers_perceiver import HEADS, from_transformers, transformers_names
from perceiver_ar.convert.weights import folder_weights, pickled_weights
from perceiver_ar.hub import (
    MODEL_TYPE,
    PERCEIVER_IO_TYPES,
    count_labels,
    local_folder,
    read_architecture,
    read_json,
    read_perceiver_io_architecture,
)
from perceiver_ar.models.from_json import from_json

TEXT = "perceiver-ar-causal-language-model"
AUDIO = "perceiver-ar-symbolic-audio-model"
TRANSFORMERS = "perceiver"
AUDIO_VOCABULARY = 389
"""Notes on and off, time shifts, velocities, and padding, which is the last id."""

Weights = Mapping[str, Tensor]
Rename = Callable[[Weights], Weights]


@dataclass(frozen=True)
class SourceModel:
    """A model that has been found; its weights are still where they were."""

    name: str
    """What the user called it."""
    model_type: str
    """As its ``config.json`` has it, or that of its class would have."""
    architecture: Architecture
    _read: Callable[[], Weights]
    folder: Path | None = None
    """Where tokenizer, image processor and model card are, if the model has any; a Lightning checkpoint has none."""
    trained_with: str | None = None
    """The tokenizer that a Lightning checkpoint names."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Names of the classes, where it has any."""

    @property
    def is_ours(self) -> bool:
        return self.model_type == MODEL_TYPE or self.model_type in PERCEIVER_IO_TYPES

    def weights(self) -> Weights:
        """The state dict of our model of this architecture.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is damaged, or holds other weights than these.
        """
        weights = self._read()
        wanted = weight_shapes(self.architecture)
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in [*wanted, *found]:
            ours, theirs = wanted.get(name, "absent"), found.get(name, "absent")
            if ours != theirs:
                raise ValueError(f"{self.name}: weight {name} is {theirs}, by the model's configuration {ours}")
            if not weights[name].is_floating_point():
                raise ValueError(f"{self.name}: weight {name} is of {weights[name].dtype}, not of floating point")
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
    model_type = str(config.get("model_type"))
    rename: Rename
    if model_type == MODEL_TYPE:
        prefix, architecture, rename = "model.", read_architecture(folder), dict
    elif model_type in PERCEIVER_IO_TYPES:
        prefix, architecture, rename = "model.", read_perceiver_io_architecture(folder), dict
    elif model_type in (TEXT, AUDIO, *PERCEIVER_IO_TASKS):
        prefix = "backend_model."
        architecture, rename = _of_perceiver_io(file, model_type, config.get("model_config"))
    elif model_type == TRANSFORMERS:
        prefix = ""
        architecture, rename = _of_transformers(file, config)
    else:
        raise ValueError(f"{file}: is a model of type {model_type}, not a Perceiver")

    def read() -> Weights:
        return rename(folder_weights(folder, prefix))

    return SourceModel(name, model_type, architecture, read, folder, labels=_labels(config, architecture))


def _labels(config: Mapping[str, Any], architecture: Architecture) -> dict[int, str]:
    """What ``config.json`` calls the classes; nothing where it names other ones, as a default does."""
    named = config.get("id2label")
    count = getattr(architecture, "num_classes", 0)
    if not isinstance(named, Mapping) or set(named) != {str(label) for label in range(count)}:
        return {}
    return {label: str(named[str(label)]) for label in range(count)}


def _in_checkpoint(path: Path) -> SourceModel:
    checkpoint = load_pickle(path)
    if not isinstance(checkpoint, Mapping) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"{path}: is no Lightning checkpoint with its hyper_parameters")
    hparams = checkpoint["hyper_parameters"]
    data = checkpoint.get("datamodule_hyper_parameters")
    named = data.get("tokenizer") if isinstance(data, Mapping) else None
    tokenizer = named if isinstance(named, str) else None
    model_type = _lightning_type(path, hparams)
    architecture, rename = _of_perceiver_io(path, model_type, hparams)
    if model_type == TEXT and tokenizer is None and architecture.vocab_size == AUDIO_VOCABULARY:
        model_type = AUDIO

    def read() -> Weights:
        return rename(dict(pickled_weights(path, checkpoint["state_dict"], "model.")))

    return SourceModel(str(path), model_type, architecture, read, trained_with=tokenizer)


def _lightning_type(path: Path, hparams: Any) -> str:
    if not (isinstance(hparams, Mapping) and "encoder" in hparams):
        return TEXT
    encoder, decoder = (type(hparams.get(part)).__name__ for part in ("encoder", "decoder"))
    if (encoder, decoder) not in LIGHTNING_CLASSES:
        raise ValueError(f"{path}: is a model of {encoder} and {decoder}, not one of krasserm/perceiver-io")
    return LIGHTNING_CLASSES[encoder, decoder]


def _of_perceiver_io(path: Path, model_type: str, hparams: Any) -> tuple[Any, Rename]:
    causal = model_type in (TEXT, AUDIO)
    needed = {"max_latents"} if causal else {"encoder", "decoder"}
    if not isinstance(hparams, Mapping) or not needed <= hparams.keys():
        raise ValueError(f"{path}: has no hyper-parameters of a model of krasserm/perceiver-io")
    try:
        if causal:
            causal_config = causal_sequence_model_config(hparams)
            return causal_config, lambda weights: causal_sequence_model_weights(weights, causal_config)
        config = _typed(perceiver_io_task_config(model_type, hparams))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    names = perceiver_io_task_names(config)
    return config, lambda weights: renamed(weights, names, ignored=COMPUTED_ON_USE)


def _of_transformers(path: Path, config: Mapping[str, Any]) -> tuple[Any, Rename]:
    heads = config.get("architectures") or ["PerceiverModel"]
    head = str(heads[0] if isinstance(heads, list) else heads)
    if head not in HEADS:
        raise ValueError(f"{path}: is a {head}; what can be read are {', '.join(HEADS)}")
    try:
        values = {**config, "num_labels": count_labels(config)}
        architecture = _typed(from_transformers(head, values, processor_size(path.parent)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    names = transformers_names(architecture)
    return architecture, lambda weights: renamed(weights, names, ignored=COUNTED_BATCHES)


def _typed(config: Any) -> Any:
    """The same; raises ValueError where a field is of another type than it should be."""
    return from_json(type(config), asdict(config))
