"""What a trained multimodal autoencoder is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.release import PERCEIVER_IO, Release
from pretrain.tasks.multimodal.config import MultimodalRunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{loaded_as}")
video = torch.rand(1, {frames}, 3, {height}, {width})  # between 0 and 1
audio = torch.zeros(1, {samples})  # between -1 and 1
with torch.no_grad():
    made = model(video=video, audio=audio)
print(made.video.shape, made.audio.shape, made.logits.shape)
```

What is left out of `video`, `audio` and `label` is hidden from the model, which makes it up."""


class MultimodalRelease(Release):
    kind = "multimodal-autoencoding"
    tags = ("perceiver", "multimodal")

    @property
    def labels(self) -> list[str] | None:
        names = super().labels or []
        # Data may have fewer classes than the model, or none at all.
        return names if len(names) == self.architecture.num_classes else None

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverIOForMultimodalAutoencoding

        return PerceiverIOForMultimodalAutoencoding

    def introduction(self) -> str:
        model = self.architecture
        frames, height, width = model.video_shape
        return (
            f"A {PERCEIVER_IO} autoencoder of clips with {self.num_parameters():,} parameters: {frames} frames of "
            f"{height} x {width} pixels, {model.num_audio_samples:,} samples of sound and a class go through "
            f"{model.encoder.num_latents:,} latents and back{self.named_labels()}."
        )

    def origin(self) -> str:
        config = self.trained.config
        assert isinstance(config, MultimodalRunConfig)
        return "Synthetic clips" if config.data.folder is None else f"Videos of the folder `{config.data.folder.name}`"

    def usage(self, loaded_as: str) -> str:
        frames, height, width = self.architecture.video_shape
        samples = self.architecture.num_audio_samples
        return USAGE.format(loaded_as=loaded_as, frames=frames, height=height, width=width, samples=samples)
