"""Clips as batches: what training hides of them, and which of their points it decodes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from perceiver_ar.models.multimodal import UNKNOWN_CLASS
from perceiver_ar.processors.clips import Clip
from pretrain.tasks.examples import ExampleBatch, ExampleData, sample_generator
from pretrain.tasks.multimodal.config import MultimodalRunConfig


class Clips(Protocol):
    """Numbered videos, one split."""

    classes: tuple[str, ...]
    """Names of the labels 0, 1, ...; empty where no video has a class."""
    labels: np.ndarray
    """(videos,) int64."""
    fingerprint: str
    """Another one where videos, their classes or their order are others."""

    def clip(self, number: int, place: float) -> Clip:
        """A clip of a video that begins at `place` in [0, 1]. Raises InputError where it cannot be read."""

    def place(self, number: int) -> str:
        """What people know a video by."""


class ClipExamples:
    """Clips from random places with something hidden, of which some points are to be decoded; or, of validation, clips
    from the middle without their class, which are to be decoded as wholes.

    Tensors of a batch are `video` (rows, frames, 3, height, width) uint8, `audio` (rows, samples), `label` (rows,)
    int64, `hidden` (rows, 3) bool; in training also `video_points` (rows, pixels) and `audio_points` (rows, audio
    patches) int64.
    """

    def __init__(self, clips: Clips, config: MultimodalRunConfig, *, training: bool) -> None:
        self._clips, self._config, self._training = clips, config, training
        self._decoders = ThreadPoolExecutor(config.data.threads)
        self.fingerprint = clips.fingerprint

    def __len__(self) -> int:
        return len(self._clips.labels)

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        rows = list(self._decoders.map(self._row, numbers.tolist(), samples.tolist()))
        return ExampleBatch(
            {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]},
            torch.ones(len(rows), dtype=torch.int64),
            torch.from_numpy(samples),
        )

    def describe(self, number: int) -> str:
        label = self._clips.labels[number]
        of_class = "" if label == UNKNOWN_CLASS else f", {self._clips.classes[label]}"
        return f"{self._clips.place(number)}{of_class}"

    def _row(self, number: int, sample: int) -> dict[str, np.ndarray]:
        draw = sample_generator(self._config.run.seed, sample) if self._training else None
        clip = self._clips.clip(number, 0.5 if draw is None else draw.random())
        silence = np.zeros(self._config.model.num_audio_samples, np.float32)
        row = {
            "video": clip.video,
            "audio": silence if clip.audio is None else clip.audio,
            "label": self._clips.labels[number],
            "hidden": np.array([False, False, True]),
        }
        return row if draw is None else row | self._draw(draw)

    def _draw(self, draw: np.random.Generator) -> dict[str, np.ndarray]:
        model, loss, masking = self._config.model, self._config.loss, self._config.masking
        shows, label = draw.random(2)
        return {
            # One draw for both: a clip always shows its video or its sound.
            "hidden": np.array([shows < masking.video, 1 - shows <= masking.audio, label < masking.label]),
            "video_points": draw.integers(model.num_pixels, size=loss.pixels),
            "audio_points": draw.integers(model.num_audio_patches, size=loss.audio_patches),
        }


class ClipData(ExampleData):
    """The clips of a run."""

    def __init__(self, config: MultimodalRunConfig, train: Clips, validation: Clips) -> None:
        super().__init__(
            config,
            ClipExamples(train, config, training=True),
            ClipExamples(validation, config, training=False),
            train.classes,
        )
