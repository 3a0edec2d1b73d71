"""What a run does that trains a Perceiver or Perceiver IO to classify images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING

from perceiver_ar.models.perceiver_config import ImageClassifierConfig
from pretrain.initial_model import open_initial_model
from pretrain.initial_weights import architecture_misfits, load_initial_weights
from pretrain.tasks.image_classification.config import ImageClassificationConfig
from pretrain.tasks.image_classification.sources import LabelledImages, open_images
from pretrain.tasks.perceiver_io import PerceiverIOTask

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

    from pretrain.distributed import Ranks
    from pretrain.tasks.image_classification.examples import ImageData
    from pretrain.tasks.image_classification.objective import ImageClassificationObjective

FIELDS = tuple(field.name for field in fields(ImageClassifierConfig))
OF_ANY_CLASSES = ("input_adapter", "encoder", "decoder", "pooling_norm")
"""The parts of a model that another with other classes can take."""


class ImageClassificationTask(PerceiverIOTask[ImageClassificationConfig]):
    unit = "images"

    @cached_property
    def _images(self) -> tuple[LabelledImages, LabelledImages]:
        return open_images(self._config.data, self._config.model.num_classes)

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        return self._image_problems(), self._initial_model_problems()

    def open_data(self, ranks: Ranks) -> ImageData:
        from pretrain.tasks.image_classification.examples import ImageData

        return ranks.together(lambda: ImageData(self._config, *self._images))

    def build(self) -> ImageClassificationObjective:
        from perceiver_ar.models.image import ImageClassifier
        from pretrain.tasks.image_classification.objective import ImageClassificationObjective

        model = ImageClassifier(self._config.model.architecture)
        return ImageClassificationObjective(model, self._config.augmentation.label_smoothing)

    def initialize(self, model: nn.Module) -> None:
        if self.init_from is not None:
            load_initial_weights(model, self.init_from, None if self._same_classes(self.init_from) else OF_ANY_CLASSES)

    def step_targets(self) -> int:
        return self._config.train.global_batch

    def step_flops(self) -> float:
        import torch

        from perceiver_ar.cost import forward_flops_of
        from perceiver_ar.models.image import ImageClassifier

        model = self._config.model
        image = torch.zeros(1, model.num_image_channels, *model.image_shape, device="meta")
        forward = forward_flops_of(lambda: ImageClassifier(model.architecture), image)
        return 3 * self._config.train.global_batch * forward  # gradients cost twice the forward pass

    def _image_problems(self) -> Iterator[str]:
        train, _ = self._images
        if len(train.labels) < self._config.train.global_batch:
            batch = self._config.train.global_batch
            yield f"train.global_batch: {batch} is more than the {len(train.labels)} training images"

    def _misfits(self, location: str) -> Iterator[str]:
        names = FIELDS if self._same_classes(location) else tuple(name for name in FIELDS if name != "num_classes")
        return architecture_misfits(self._config.model.architecture, location, names)

    def _same_classes(self, location: str) -> bool:
        theirs = open_initial_model(location, ImageClassifierConfig).architecture
        return theirs.num_classes == self._config.model.num_classes
