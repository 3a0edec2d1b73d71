"""Folders of models, here or on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.from_json import from_json
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)

MODEL_TYPE = "perceiver-ar"
"""`model_type` in the ``config.json`` of a Perceiver AR."""

PERCEIVER_IO_TYPES: dict[str, type] = {
    "perceiver-masked-lm": MaskedLMConfig,
    "perceiver-text-classifier": TextClassifierConfig,
    "perceiver-image-classifier": ImageClassifierConfig,
    "perceiver-optical-flow": OpticalFlowConfig,
    "perceiver-multimodal": MultimodalConfig,
}
"""Those of our other models: what each is built from."""

REPOSITORY = r"[\w.-]+/[\w.-]+"
"""What the name of one looks like, ``owner/name``."""

_HUB_NAME = re.compile(rf"(?P<repository>{REPOSITORY})(@(?P<revision>[\w./-]+))?")
# Never Python files: nothing of a model's folder is executed.
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "README.md"]
_PICKLES = ["*.bin"]


def local_folder(name: str | Path) -> Path:
    """The folder `name`, or the model ``owner/name[@revision]`` of the Hub, downloaded into its cache.

    Of the Hub's files only weights, configuration, tokenizer and model card are fetched; pickled weights only where
    there are no others. Without a connection, what the cache holds will do.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a model, or this user may not know of it.
        PermissionError: the Hub refuses the token, or wants one.
        ConnectionError: the Hub cannot be reached, or refuses for now, and the cache does not hold the model.
        OSError: the cache cannot be written.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    match = _HUB_NAME.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(f"{name}: no such folder, and not owner/name[@revision] of a model on the Hub")
    folder = _download(match["repository"], match["revision"], _FILES)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: is no model, the repository has no config.json")
    if not any(folder.glob("*.safetensors")):
        _download(match["repository"], match["revision"], _PICKLES)
        if not any(folder.glob("*.bin")):
            raise FileNotFoundError(f"{name}: is no model, the repository has neither *.safetensors nor *.bin")
    return folder


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    # Takes a second to import, which local folders need not wait for.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars, logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # it warns where no file matches, which is said here
    name = repository if revision is None else f"{repository}@{revision}"
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except HFValidationError:
        raise FileNotFoundError(f"{name}: no such folder, and no name that a model on the Hub can have") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{name}: {repository} on {constants.ENDPOINT} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such folder, and no model on {constants.ENDPOINT} that you may read: log in or set HF_TOKEN "
            "if it is a private or gated one"
        ) from None
    except UnicodeEncodeError:  # of the header that it goes into
        raise PermissionError(f"{name}: the token is not ASCII: set HF_TOKEN to one, or run `hf auth login`") from None
    except (HTTPError, LocalEntryNotFoundError) as error:
        answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if isinstance(answer, HfHubHTTPError) and (status := answer.response.status_code) in (401, 403):
            raise PermissionError(
                f"{name}: no such folder, and {constants.ENDPOINT} refuses the token, or the lack of one ({status}): "
                "set HF_TOKEN to one that may read the model, or run `hf auth login`"
            ) from None
        reason = str(error).strip().partition("\n")[0].removeprefix("Got: ")
        raise ConnectionError(f"{name}: no such folder, and {constants.ENDPOINT} does not answer: {reason}") from error
    except OSError as error:  # the cache is on a disk that is full, or not ours to write
        raise OSError(f"{name}: cannot be downloaded: {error}") from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return value


def read_architecture(folder: Path) -> PerceiverARConfig:
    """What the model of an exported `folder` is made of, by its ``config.json``.

    Raises:
        FileNotFoundError: the folder holds no ``config.json``.
        ValueError: that is one of another kind of model, or makes no model.
    """
    path = folder / "config.json"
    config = read_json(path)
    if (kind := config.get("model_type")) != MODEL_TYPE:
        raise ValueError(f"{path}: model_type must be {MODEL_TYPE!r}, not {kind!r}")
    names = [field.name for field in fields(PerceiverARConfig)]
    try:
        return PerceiverARConfig(**{name: config[name] for name in names if name in config})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_perceiver_io_architecture(folder: Path) -> Any:
    """As `read_architecture`, of a model whose type is one of `PERCEIVER_IO_TYPES`."""
    path = folder / "config.json"
    config = read_json(path)
    kind = PERCEIVER_IO_TYPES.get(str(config.get("model_type")))
    if kind is None:
        raise ValueError(
            f"{path}: model_type must be one of {', '.join(PERCEIVER_IO_TYPES)}, not {config.get('model_type')!r}"
        )
    names = {field.name for field in fields(kind)}
    values = {name: value for name, value in config.items() if name in names}
    try:
        if "num_classes" in names:
            values["num_classes"] = count_labels(config)
        return from_json(kind, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def count_labels(config: Mapping[str, Any]) -> int:
    """How many classes a ``config.json`` has: transformers leaves out what is its default.

    Raises ValueError where its names of them are no names.
    """
    labels = config.get("id2label")
    if not isinstance(labels, Mapping | None):
        raise ValueError(f"id2label must be an object, not {labels!r}")
    return len(labels) if labels else config.get("num_labels", 2)
