"""Weights as they are stored in folders and in pickled checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from perceiver_ar.convert.pickles import StoredTensor, load_pickle


def folder_weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    """What a Hugging Face folder holds under names that begin with `prefix`, which is left out of them.

    Raises:
        FileNotFoundError: there is neither ``model*.safetensors`` nor ``pytorch_model*.bin``.
        ValueError: a file is damaged.
    """
    if files := sorted(folder.glob("model*.safetensors")):
        weights: dict[str, Tensor] = {}
        for file in files:
            try:
                weights |= load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file}: is damaged ({error})") from None
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if files := sorted(folder.glob("pytorch_model*.bin")):
        return {name: weight for file in files for name, weight in pickled_weights(file, load_pickle(file), prefix)}
    raise FileNotFoundError(f"{folder}: holds neither model*.safetensors nor pytorch_model*.bin")


def pickled_weights(file: Path, state_dict: Any, prefix: str) -> list[tuple[str, Tensor]]:
    """The tensors of a `state_dict` from `load_pickle`, read, with their names behind `prefix`.

    Raises ValueError where it holds something else, or `file` is damaged.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{file}: holds no weights by name")
    weights = []
    for name, tensor in state_dict.items():
        if isinstance(name, str) and name.startswith(prefix):
            if not isinstance(tensor, StoredTensor):
                raise ValueError(f"{file}: {name} is no plain tensor")
            weights.append((name.removeprefix(prefix), tensor.read()))
    return weights
