"""Labelled images as the numbered examples that a run trains on and is validated on."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from perceiver_ar.processors.image import central_box, crop_and_resize, decode_image, image_size, normalize
from pretrain.errors import InputError
from pretrain.tasks.examples import ExampleBatch, ExampleData, sample_generator
from pretrain.tasks.image_classification.augmentation import augment, mix_pairs
from pretrain.tasks.image_classification.config import ImageClassificationConfig
from pretrain.tasks.image_classification.sources import LabelledImages


class ImageExamples:
    """Batches of `images` (rows, C, H, W) float32, `labels` (rows, 2) int64 of each and of what is mixed into it, and
    the `shares` (rows,) of the first: 1 where nothing is mixed."""

    def __init__(
        self, images: LabelledImages, config: ImageClassificationConfig, threads: Executor, *, augmented: bool
    ) -> None:
        """Images are read in `threads`; `augmented` ones as training sees them, the others as validation does."""
        self.fingerprint = images.fingerprint
        self._images, self._config, self._threads, self._augmented = images, config, threads, augmented

    def __len__(self) -> int:
        return len(self._images.labels)

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        config = self._config
        generators = [sample_generator(config.run.seed, sample) for sample in samples.tolist()]
        pixels = torch.stack(list(self._threads.map(self._pixels, numbers.tolist(), generators)))
        images = normalize(pixels, config.data.mean, config.data.std)
        labels, shares = torch.from_numpy(self._images.labels[numbers]), torch.ones(len(numbers))
        if self._augmented and config.augmentation.mixes:
            images, pairs, shares = mix_pairs(images, labels, config.augmentation, generators)
        else:
            pairs = labels[:, None].expand(-1, 2).contiguous()
        return ExampleBatch(
            {"images": images, "labels": pairs, "shares": shares},
            counts=torch.ones(len(numbers), dtype=torch.int64),
            indices=torch.from_numpy(samples.copy()),
        )

    def describe(self, number: int) -> str:
        return f"{self._images.place(number)}: {self._images.classes[self._images.labels[number]]}"

    def _pixels(self, number: int, random: np.random.Generator) -> Tensor:
        model, data = self._config.model, self._config.data
        try:
            image = decode_image(self._images.content(number), model.num_image_channels)
        except ValueError as error:
            raise InputError(f"{self._images.place(number)}: {error}") from None
        if self._augmented:
            return augment(image, model.image_shape, data.crop_fraction, self._config.augmentation, random)
        box = central_box(image_size(image), model.image_shape, data.crop_fraction)
        return crop_and_resize(image, box, model.image_shape)


class ImageData(ExampleData):
    """The images of a run."""

    def __init__(self, config: ImageClassificationConfig, train: LabelledImages, validation: LabelledImages) -> None:
        threads = ThreadPoolExecutor(config.data.threads, thread_name_prefix="images")
        super().__init__(
            config,
            ImageExamples(train, config, threads, augmented=True),
            ImageExamples(validation, config, threads, augmented=False),
            train.classes,
        )
