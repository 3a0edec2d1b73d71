"""What a run does that trains a Perceiver IO to autoencode clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pretrain.tasks.multimodal.config import MultimodalRunConfig
from pretrain.tasks.multimodal.folder import VideoFolder
from pretrain.tasks.perceiver_io import PerceiverIOTask

if TYPE_CHECKING:  # bad input is not to wait for torch
    from pretrain.distributed import Ranks
    from pretrain.tasks.multimodal.clips import ClipData, Clips
    from pretrain.tasks.multimodal.objective import MultimodalObjective


class MultimodalTask(PerceiverIOTask[MultimodalRunConfig]):
    unit = "clips"

    @cached_property
    def _splits(self) -> tuple[Clips, Clips]:
        """To train on and to validate on. Raises InputError."""
        data, shape = self._config.data, self._config.clip_shape
        if data.folder is not None:
            train, validation = (VideoFolder(data.folder, split, shape) for split in (data.train, data.validation))
            return train, validation
        from pretrain.tasks.multimodal.synthetic import SyntheticClips

        assert data.synthetic is not None
        counts = data.synthetic.clips, data.synthetic.validation_clips
        return SyntheticClips(0, counts[0], shape), SyntheticClips(*counts, shape)

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        return self._data_problems(), self._initial_model_problems()

    def doubts(self) -> Iterator[str]:
        train, _ = self._splits
        if train.classes and len(train.classes) < (known := self._config.model.num_classes):
            yield f"model.num_classes: {known}, of which the data has {len(train.classes)}"

    def open_data(self, ranks: Ranks) -> ClipData:
        from pretrain.tasks.multimodal.clips import ClipData

        return ranks.together(lambda: ClipData(self._config, *self._splits))

    def build(self) -> MultimodalObjective:
        from perceiver_ar.models.multimodal import MultimodalAutoencoder
        from pretrain.tasks.multimodal.objective import MultimodalObjective

        return MultimodalObjective(MultimodalAutoencoder(self._config.model.architecture), self._config.loss)

    def step_targets(self) -> int:
        return self._config.train.global_batch

    def step_flops(self) -> float:
        import torch

        from perceiver_ar.cost import forward_flops_of
        from perceiver_ar.models.multimodal import MultimodalAutoencoder

        model, loss = self._config.model.architecture, self._config.loss
        frames, height, width = model.video_shape
        with torch.device("meta"):
            clip = torch.zeros(1, frames, 3, height, width), torch.zeros(1, model.num_audio_samples)
            label = torch.zeros(1, dtype=torch.int64)
            points = (torch.zeros(1, count, dtype=torch.int64) for count in (loss.pixels, loss.audio_patches))
        forward = forward_flops_of(lambda: MultimodalAutoencoder(model), *clip, label, *points)
        return 3 * forward * self.step_targets()

    def _data_problems(self) -> Iterator[str]:
        train, validation = self._splits
        if len(train.classes) > self._config.model.num_classes:
            yield f"model.num_classes: {self._config.model.num_classes} is too small, the data has {len(train.classes)}"
        if train.classes != validation.classes:
            strange = sorted(set(train.classes) ^ set(validation.classes))
            yield f"data.folder: the splits have other classes: {', '.join(strange)} are in one of them only"
        if len(train.labels) < (batch := self._config.train.global_batch):
            yield f"train.global_batch: {batch} is more than the {len(train.labels)} training clips: lower it"
