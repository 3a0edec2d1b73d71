"""Multimodal autoencoding: a batch of clips -> loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_ar.models.multimodal import UNKNOWN_CLASS, MultimodalAutoencoder
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.multimodal.config import LossSection
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput

ERRORS = {"absolute": torch.abs, "squared": torch.square}
LEAST_SQUARED_ERROR = 1e-10
"""A hundred decibels: more is not measured."""


class MultimodalObjective(Objective):
    """An autoencoder with its loss: the weighted sum of what is wrong about video, sound and class of a clip."""

    def __init__(self, model: MultimodalAutoencoder, weights: LossSection) -> None:
        super().__init__()
        self.model: MultimodalAutoencoder = model
        self.weights = weights

    def forward(self, batch: ExampleBatch) -> TaskOutput:
        clips = batch.tensors
        video, audio, label = clips["video"].float() / 255, clips["audio"], clips["label"]
        if "video_points" in clips:
            points = clips["video_points"], clips["audio_points"]
            made = self.model(video, audio, label, *points, clips["hidden"])
            video, audio = self._at(video, audio, *points)
        else:
            made = self.model.reconstruct(self.model.encode(video, audio, label, clips["hidden"]))
        made_video, made_audio, logits = (part.float() for part in made)
        weights, error = self.weights, ERRORS[self.weights.error]
        losses = (
            weights.video * _mean(error(made_video - video))
            + weights.audio * _mean(error(made_audio - audio))
            + weights.label * F.cross_entropy(logits, label, ignore_index=UNKNOWN_CLASS, reduction="none")
        )
        measures = {}
        if not torch.is_grad_enabled():
            measures["video_psnr"] = _psnr(made_video.clamp(0, 1), video)
            measures["audio_psnr"] = _psnr(made_audio.clamp(-1, 1), audio)
            if (label != UNKNOWN_CLASS).all():
                measures["accuracy"] = (logits.argmax(-1) == label).unsqueeze(-1)
        return TaskOutput(losses.sum(), losses.detach().unsqueeze(-1), measures)

    def _at(self, video: Tensor, audio: Tensor, video_points: Tensor, audio_points: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen pixels (rows, points, 3) and patches of sound (rows, points, samples)."""
        rows = torch.arange(len(video), device=video.device)[:, None]
        pixels = video.movedim(2, -1).flatten(1, 3)
        patches = audio.unflatten(1, (-1, self.model.config.audio_patch))
        return pixels[rows, video_points], patches[rows, audio_points]


def _mean(errors: Tensor) -> Tensor:
    """Of each row."""
    return errors.flatten(1).mean(1)


def _psnr(made: Tensor, given: Tensor) -> Tensor:
    """Decibels of each row, (rows, 1), below a signal of amplitude 1."""
    return -10 * _mean((made - given).square()).clamp(min=LEAST_SQUARED_ERROR).log10().unsqueeze(-1)
