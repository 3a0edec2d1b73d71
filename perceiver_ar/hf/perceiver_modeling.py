"""Perceiver and Perceiver IO as Hugging Face models: the same modules inside what `transformers` expects."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput, MaskedLMOutput, ModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from perceiver_ar.hf.perceiver_configuration import (
    PerceiverImageClassifierHFConfig,
    PerceiverIOHFConfig,
    PerceiverMaskedLMHFConfig,
    PerceiverMultimodalHFConfig,
    PerceiverOpticalFlowHFConfig,
    PerceiverTextClassifierHFConfig,
)
from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.multimodal import Decoded, MultimodalAutoencoder, Reconstruction
from perceiver_ar.models.text import MaskedLM, TextClassifier
from perceiver_ar.processors.flow.features import FLOW_SCALE


class PerceiverIOPreTrainedModel(PreTrainedModel):
    """Loading and saving, which all heads share; all weights lie under ``model.``."""

    config_class = PerceiverIOHFConfig
    base_model_prefix = ""
    native: ClassVar[type[nn.Module]]
    """The module that does the work."""
    # Losses are means over a batch: `Trainer` is to divide them when it accumulates gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: PerceiverIOHFConfig) -> None:
        super().__init__(config)
        # It is one block over one latent array: it runs on one device.
        self._no_split_modules = [self.native.__name__]
        self.model = self.native(config.perceiver)
        self.post_init()

    def init_weights(self) -> None:
        """Nothing to do: the module has drawn its own weights."""

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights that a checkpoint lacks."""
        super()._init_weights(module)
        self.model.initialize(module)


class PerceiverIOForMaskedLM(PerceiverIOPreTrainedModel):
    """Predicts the tokens that are masked."""

    config_class = PerceiverMaskedLMHFConfig
    native = MaskedLM
    accepts_loss_kwargs = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """`logits` (batch, length, vocab_size) of `input_ids` (batch, length); `attention_mask` is 0 at padding.

        `labels` (batch, length) are token ids, -100 where no loss is wanted; `loss` is the mean cross-entropy in nats,
        or with `num_items_in_batch` the sum divided by it.

        Raises ValueError for more than `max_seq_len` tokens.
        """
        logits = self.model(input_ids, _valid(attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return MaskedLMOutput(loss=loss, logits=logits)


class PerceiverIOForSequenceClassification(PerceiverIOPreTrainedModel):
    """Says which class a text is of."""

    config_class = PerceiverTextClassifierHFConfig
    native = TextClassifier

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """`logits` (batch, classes) of `input_ids` (batch, length); `attention_mask` is 0 at padding.

        `loss` is the mean cross-entropy of the `labels` (batch,) in nats, or what ``config.problem_type`` asks for.

        Raises ValueError for more than `max_seq_len` tokens.
        """
        logits = self.model(input_ids, _valid(attention_mask))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class PerceiverIOForImageClassification(PerceiverIOPreTrainedModel):
    """Says which class an image is of."""

    config_class = PerceiverImageClassifierHFConfig
    native = ImageClassifier
    main_input_name = "pixel_values"

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """`logits` (batch, classes) of `pixel_values` (batch, channels, height, width).

        `loss` is the mean cross-entropy of the `labels` (batch,) in nats, or what ``config.problem_type`` asks for.

        Raises ValueError for images of another shape than the configuration's.
        """
        logits = self.model(pixel_values)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)


class PerceiverIOForOpticalFlow(PerceiverIOPreTrainedModel):
    """Says where each pixel of a frame goes in the next one."""

    config_class = PerceiverOpticalFlowHFConfig
    native = OpticalFlow
    main_input_name = "patches"

    @can_return_tuple
    def forward(self, patches: Tensor, labels: Tensor | None = None, **_: Any) -> ModelOutput:
        """`logits` (batch, height, width, 2), the flow in the model's own scale, of two frames' `patches`.

        These are (batch, 2, 27, height, width), see `frame_patches`; `FLOW_SCALE` times the flow is in pixels. `labels`
        (batch, height, width, 2) are flows in pixels, not finite where unknown; `loss` is the mean end-point error.
        """
        flow = self.model(patches)
        loss = None
        if labels is not None:
            known = labels.isfinite().all(-1)
            loss = torch.linalg.vector_norm(FLOW_SCALE * flow[known].float() - labels[known], dim=-1).mean()
        return ModelOutput(loss=loss, logits=flow)


class PerceiverIOForMultimodalAutoencoding(PerceiverIOPreTrainedModel):
    """Clips of video, sound and a class through a bottleneck and back; a classifier where the class is left out."""

    config_class = PerceiverMultimodalHFConfig
    native = MultimodalAutoencoder
    main_input_name = "video"

    @can_return_tuple
    def forward(
        self,
        video: Tensor | None = None,
        audio: Tensor | None = None,
        label: Tensor | None = None,
        hidden: Tensor | None = None,
        video_points: Tensor | None = None,
        audio_points: Tensor | None = None,
        **_: Any,
    ) -> ModelOutput:
        """`video`, `audio` and `logits` of the class, as `MultimodalAutoencoder` makes them of what it is given.

        With `video_points` and `audio_points`, of these only (its `decode`), else of whole clips (`reconstruct`).

        Raises ValueError for clips of another shape than the configuration's.
        """
        latents = self.model.encode(video, audio, label, hidden)
        made: Decoded | Reconstruction
        if video_points is None or audio_points is None:
            made = self.model.reconstruct(latents)
        else:
            made = self.model.decode(latents, video_points, audio_points)
        return ModelOutput(logits=made.label, video=made.video, audio=made.audio)


def _valid(attention_mask: Tensor | None) -> Tensor | None:
    """None where nothing is padding: there are faster kernels for that."""
    return None if attention_mask is None or attention_mask.all() else attention_mask.bool()


__all__ = [
    "PerceiverIOForImageClassification",
    "PerceiverIOForMaskedLM",
    "PerceiverIOForMultimodalAutoencoding",
    "PerceiverIOForOpticalFlow",
    "PerceiverIOForSequenceClassification",
    "PerceiverIOPreTrainedModel",
]
