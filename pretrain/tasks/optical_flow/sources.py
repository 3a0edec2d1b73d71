"""Where pairs come from: scenes that are generated, or folders; and which of them are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

from pretrain.errors import InputError
from pretrain.tasks.optical_flow.config import GeneratedPairs, OpticalFlowRunConfig, Pairs
from pretrain.tasks.optical_flow.folders import StoredPair, find_pairs
from pretrain.tasks.optical_flow.generator import draw_scene
from pretrain.tasks.optical_flow.pair import Pair
from pretrain.tasks.optical_flow.textures import Pictures, find_pictures

GENERATOR_VERSION = 1
"""Part of every fingerprint: raise it when scenes change, so that no run goes on with others unnoticed."""
VALIDATION_SCENES = 256
"""Made of the pictures that are held out."""

Item = TypeVar("Item")


class Source(NamedTuple):
    """Pairs by number."""

    size: int
    """How many there are."""
    read: Callable[[int], Pair]
    """Raises InputError."""
    place: Callable[[int], str]
    fingerprint: str


def open_sources(config: OpticalFlowRunConfig) -> tuple[Source, Source]:
    """What is trained on, and what is validated on. Raises InputError where a folder does not hold what it should."""
    data = config.data
    if data.validation is not None:
        return _open(data.train, config, "train", None), _open(data.validation, config, "validation", None)
    return _open(data.train, config, "train", data.held_out), _open(data.train, config, "validation", data.held_out)


def _open(pairs: Pairs, config: OpticalFlowRunConfig, role: str, held_out: float | None) -> Source:
    if not isinstance(pairs, GeneratedPairs):
        stored = _side(find_pairs(pairs), role, held_out, lambda pair: pair.group)
        return _stored(stored, pairs.dir, config.model.frame_shape, role)
    paths = None
    if pairs.pictures is not None:
        paths = _side(find_pictures(pairs.pictures), role, held_out, lambda path: path)
    scenes = VALIDATION_SCENES if role == "validation" and held_out is not None else pairs.scenes
    return _generated(pairs, config, paths, scenes, role)


def _side(items: list[Item], role: str, held_out: float | None, group: Callable[[Item], Hashable]) -> list[Item]:
    """The items of one side, where a share of all groups is held out: some group on both, by a fixed random order."""
    if held_out is None:
        return items
    groups = list(dict.fromkeys(map(group, items)))
    if len(groups) < 2:
        raise InputError(f"data.train: holds {groups[0]} only, so nothing can be held out: give data.validation")
    shuffled = np.random.Generator(np.random.PCG64(len(groups))).permutation(len(groups))
    chosen = {groups[number] for number in shuffled[: min(math.ceil(held_out * len(groups)), len(groups) - 1)]}
    return [item for item in items if (group(item) in chosen) == (role == "validation")]


def _generated(
    pairs: GeneratedPairs, config: OpticalFlowRunConfig, paths: list[Path] | None, scenes: int, role: str
) -> Source:
    shape = config.model.frame_shape
    pictures = None if paths is None else Pictures(paths, shape)
    # Those of validation are the same in all runs, so that runs can be compared.
    seed = config.run.seed if role == "train" else 0
    files = [] if paths is None else _sizes(paths, pairs.pictures)
    parts = (GENERATOR_VERSION, role, seed, *shape, pairs.motion.model_dump_json(), *files)
    fingerprint = xxhash.xxh64_hexdigest("\n".join(map(str, parts)).encode())
    key = xxhash.xxh64_intdigest(f"scenes of {fingerprint}".encode()) >> 1

    def read(number: int) -> Pair:
        from pretrain.tasks.examples import sample_generator  # brings torch: mistakes are not to wait for it

        return draw_scene(shape, pairs.motion, pictures, sample_generator(key, number)).pair()

    return Source(scenes, read, lambda number: f"scene {number}", fingerprint)


def _stored(stored: list[StoredPair], folder: Path, shape: tuple[int, int], role: str) -> Source:
    def read(number: int) -> Pair:
        pair = stored[number].read()
        if role == "train" and (pair.shape[0] < shape[0] or pair.shape[1] < shape[1]):
            sizes = f"{pair.shape[1]} x {pair.shape[0]} pixels are less than the model's {shape[1]} x {shape[0]}"
            raise InputError(f"{stored[number].first}: {sizes}: lower model.image_shape")
        return pair

    read(0)  # what is wrong with all of them is found before training
    files = _sizes([pair.flow for pair in stored], folder)
    fingerprint = xxhash.xxh64_hexdigest("\n".join(files).encode())
    return Source(len(stored), read, lambda number: str(stored[number].first), fingerprint)


def _sizes(paths: Sequence[Path], folder: Path | None) -> list[str]:
    """What tells files apart without reading them all, wherever their folder lies."""
    return [f"{path.relative_to(folder) if folder else path} {path.stat().st_size}" for path in paths]
