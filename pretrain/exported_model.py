"""A model as evaluate and generate open it, from a run, a checkpoint, an exported folder or a name on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perceiver_ar.hub import local_folder, read_architecture, read_json
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.errors import InputError, Unavailable
from pretrain.trained_model import TrainedModel
from pretrain.trained_run import TrainedRun

if TYPE_CHECKING:  # transformers takes seconds to import: bad input is not to wait for it
    from transformers import PreTrainedTokenizerFast

    from perceiver_ar.hf import PerceiverARForCausalLM

CONFIG = "config.json"


def find_model(name: str | Path) -> TrainedModel | ExportedModel:
    """As `find_run_or_model`; raises `InputError` for a run that trains something else than a Perceiver AR, too."""
    found = find_run_or_model(name)
    if isinstance(found, TrainedModel | ExportedModel):
        return found
    raise InputError(f"{name}: is a run of task {found.config.task}, not of a causal language model")


def find_run_or_model(name: str | Path) -> TrainedRun | ExportedModel:
    """The model of a run directory, a checkpoint, an exported folder, or ``owner/name[@revision]`` on the Hub.

    A run that trains a Perceiver AR is a `TrainedModel`.

    Raises `InputError` where there is none, or an exported one is no Perceiver AR; `Unavailable` where the Hub cannot
    be reached.
    """
    path = Path(name)
    if (path / CONFIG).is_file():
        return ExportedModel(path.resolve().name, path)
    if path.exists():
        _check_is_trained(path)
        run = TrainedRun.find(path)
        return TrainedModel(run.checkpoint) if run.config.task == "causal_lm" else run
    try:
        return ExportedModel(str(name), local_folder(name))
    except ConnectionError as error:
        raise Unavailable(_line(error)) from error
    except OSError as error:
        raise InputError(_line(error)) from error


def _check_is_trained(path: Path) -> None:
    """Raises `InputError` where this is no folder of a model; names one that lies in it."""
    if path.is_dir() and not (path / "checkpoints").is_dir() and not (path / "state.json").is_file():
        near = next((f"; did you mean {file.parent}?" for file in sorted(path.glob(f"*/{CONFIG}"))), "")
        raise InputError(
            f"{path}: neither a run directory (no checkpoints/), nor a checkpoint (no state.json), nor an exported "
            f"folder (no {CONFIG}){near}"
        )


@dataclass(frozen=True)
class ExportedModel:
    """A Hugging Face folder, exported or downloaded. What it says is checked when it is opened."""

    name: str
    """As titles show it: the folder's own name, or that on the Hub."""
    folder: Path

    def __post_init__(self) -> None:
        _ = self.architecture, self.training, self._generation

    @cached_property
    def architecture(self) -> PerceiverARConfig:
        try:
            return read_architecture(self.folder)
        except (OSError, ValueError) as error:
            raise InputError(_line(error)) from error

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """``training.json``: steps, tokens, tokenizer and data of its training; None where a model came without."""
        return self._read("training.json")

    @cached_property
    def _generation(self) -> dict[str, Any]:
        return self._read("generation_config.json") or {}

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            return read_json(path) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise InputError(_line(error)) from error

    @property
    def dtype(self) -> torch.dtype:
        """What its training computed in; where that is unknown, what its weights are stored in."""
        config = self._read(CONFIG) or {}
        stored = config.get("dtype", config.get("torch_dtype"))
        computed_in_bf16 = self.training["precision"] == "bf16" if self.training else stored == "bfloat16"
        return torch.bfloat16 if computed_in_bf16 else torch.float32

    @property
    def within_documents(self) -> bool:
        """Whether it has learned to attend to nothing before the document a token is in."""
        return bool(self.training and self.training["within_documents"])

    @property
    def end_id(self) -> int:
        """The token between documents. Raises `InputError` where the model does not tell."""
        ids = self.training["end_id"] if self.training else self._generation.get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if not isinstance(first, int):
            raise InputError(f"{self.folder / 'generation_config.json'}: names no eos_token_id: no end of documents")
        return first

    def model(self) -> PerceiverAR:
        """The model with its weights in fp32, in evaluation mode."""
        return self.hf_model().model

    def hf_model(self, dtype: torch.dtype = torch.float32) -> PerceiverARForCausalLM:
        """The Hugging Face model, in evaluation mode. Raises `InputError` where its files do not hold one."""
        from safetensors import SafetensorError
        from transformers.utils import logging

        from perceiver_ar.hf import PerceiverARForCausalLM

        logging.disable_progress_bar()
        try:
            return PerceiverARForCausalLM.from_pretrained(self.folder, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self.name}: cannot be loaded: {_line(error)}") from error

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Raises `InputError` where the folder holds none: a model of music, say, has only ids."""
        from transformers import AutoTokenizer

        import perceiver_ar.hf  # noqa: F401  (registers the model, whose tokenizers are looked up by its type)

        if not (self.folder / "tokenizer_config.json").is_file():
            raise InputError(f"{self.name}: has no tokenizer (tokenizer_config.json), so it cannot read text")
        try:
            return AutoTokenizer.from_pretrained(self.folder)  # type: ignore[return-value]
        except Exception as error:  # what the tokenizers library raises has no other class
            raise InputError(f"{self.name}: its tokenizer cannot be loaded: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Errors of transformers and the Hub are pages."""
    return str(error).strip().split("\n")[0]
