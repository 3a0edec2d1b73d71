"""What a trained image classifier is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.release import PERCEIVER, PERCEIVER_IO, Release
from pretrain.tasks.image_classification.config import ImageClassificationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

classify = pipeline("image-classification", model="{loaded_as}")
print(classify("image.png"))
```

Images of any size are cropped to their middle and resized to {height} x {width} pixels."""


class ImageClassificationRelease(Release):
    pipeline_tag = kind = "image-classification"

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverIOForImageClassification

        return PerceiverIOForImageClassification

    def processors(self) -> list[Any]:
        from perceiver_ar.hf import PerceiverIOImageProcessor

        config = self.trained.config
        assert isinstance(config, ImageClassificationConfig)
        return [
            PerceiverIOImageProcessor(
                config.model.image_shape,
                num_channels=config.model.num_image_channels,
                crop_fraction=config.data.crop_fraction,
                image_mean=config.data.mean,
                image_std=config.data.std,
            )
        ]

    def introduction(self) -> str:
        model = self.architecture
        name = PERCEIVER if model.decoder is None else PERCEIVER_IO
        return (
            f"A {name} image classifier with {self.num_parameters():,} parameters: {model.encoder.num_latents:,} "
            f"latents read {' x '.join(map(str, model.image_shape))} pixels and tell which of {model.num_classes:,} "
            f"classes an image is of{self.named_labels()}."
        )

    def usage(self, loaded_as: str) -> str:
        height, width = self.architecture.image_shape
        return USAGE.format(loaded_as=loaded_as, height=height, width=width)
