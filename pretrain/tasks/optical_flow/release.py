"""What a trained optical flow model is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.release import PERCEIVER_IO, Release
from pretrain.tasks.optical_flow.config import FolderPairs, GeneratedPairs, OpticalFlowRunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from PIL import Image
from transformers import pipeline

flow = pipeline("optical-flow", model="{loaded_as}")
found = flow((Image.open("frame-1.png"), Image.open("frame-2.png")))
print(found["flow"].shape)  # how far each pixel moves to the right and down
found["image"].save("flow.png")
```

Frames of any size are cut into tiles of {height} x {width} pixels. Whole videos are read and written by
`python -m perceiver_ar.processors.flow VIDEO --model {loaded_as} --out out.mp4`."""


class OpticalFlowRelease(Release):
    kind = "optical-flow"
    tags = ("perceiver", "optical-flow")

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverIOForOpticalFlow

        return PerceiverIOForOpticalFlow

    def introduction(self) -> str:
        model = self.architecture
        return (
            f"A {PERCEIVER_IO} with {self.num_parameters():,} parameters that tells where each pixel of a frame goes "
            f"in the next: {model.encoder.num_latents:,} latents read the 3 x 3 neighbourhoods of all pixels of both "
            "frames, and each pixel asks them for its motion."
        )

    def origin(self) -> str:
        config = self.trained.config
        assert isinstance(config, OpticalFlowRunConfig)
        return _pairs(config.data.train)

    def usage(self, loaded_as: str) -> str:
        height, width = self.architecture.image_shape
        return USAGE.format(loaded_as=loaded_as, height=height, width=width)


def _pairs(pairs: GeneratedPairs | FolderPairs) -> str:
    if not isinstance(pairs, GeneratedPairs):
        return f"Pairs of `{pairs.kind}`"
    pictures = "coloured noise" if pairs.pictures is None else f"the pictures of `{pairs.pictures.name}`"
    return f"Scenes made of {pictures} in motion"
