"""`pipeline("optical-flow")`: where the pixels of one frame go in the next one."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline
from transformers.image_utils import load_image

from perceiver_ar.processors.flow.estimation import estimate_flow
from perceiver_ar.processors.flow.rendering import MAX_FLOW, render_flow
from perceiver_ar.processors.flow.tiles import Tiling
from perceiver_ar.processors.image import image_tensor

AnyFrame = str | Image.Image | np.ndarray


class OpticalFlowPipeline(Pipeline):
    """The flow between the two frames of a pair, or of each pair of a list or generator of pairs.

    A pair is a tuple, of Pillow images, arrays (H, W, 3) of bytes, files or URLs; both frames have one size, any. What
    it gives of a pair is a dictionary:

    - `flow`: a tensor (H, W, 2), fp32: how far each pixel of the first frame moves to the right and down, in pixels;
    - `image`: the flow as a Pillow image, the direction as hue, the speed as saturation.

    Arguments, of the pipeline or of a call:

    - `micro_batch_size`: how many tiles the model sees at once, 1 by default;
    - `max_flow`: the pixels at which saturation is full, 24 by default.

    Raises:
        ValueError: an input is no such pair.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def _sanitize_parameters(  # type: ignore[override]
        self, micro_batch_size: int | None = None, max_flow: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {} if micro_batch_size is None else {"micro_batch_size": micro_batch_size}
        postprocess = {} if max_flow is None else {"max_flow": max_flow}
        return {}, forward, postprocess

    def preprocess(self, input_: tuple[AnyFrame, AnyFrame]) -> dict[str, Tensor]:  # type: ignore[override]
        if not isinstance(input_, tuple) or len(input_) != 2:
            raise ValueError("a pair of frames must be a tuple (first, second); a list is one of such pairs")
        first, second = (_read_frame(frame) for frame in input_)
        if first.shape != second.shape:
            raise ValueError(f"both frames must have one size, not {_size(first)} and {_size(second)} pixels")
        return {"frames": torch.stack([first, second])}

    def _forward(  # type: ignore[override]
        self, input_tensors: dict[str, Tensor], micro_batch_size: int = 1
    ) -> dict[str, Tensor]:
        frames = input_tensors["frames"]
        height, width = self.model.config.image_shape
        tiling = Tiling((frames.shape[1], frames.shape[2]), (height, width))
        [flow] = estimate_flow([frames], tiling, self._predict, micro_batch_size)
        return {"flow": flow}

    def _predict(self, patches: Tensor) -> Tensor:
        return self.model(patches.to(self.device, self.dtype)).logits

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Tensor], max_flow: float = MAX_FLOW
    ) -> dict[str, Any]:
        flow = model_outputs["flow"]
        return {"flow": flow, "image": Image.fromarray(render_flow(flow, max_flow))}

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save the model, of which `pipeline("optical-flow", save_directory)` makes a pipeline again.

        Inherited, it would save a copy of this file too, and nothing would load it without ``trust_remote_code``.
        """
        self.model.save_pretrained(save_directory, **kwargs)


def _read_frame(frame: AnyFrame) -> Tensor:
    """(H, W, 3), uint8."""
    image = load_image(frame) if isinstance(frame, str) else frame
    return image_tensor(image, channels=3).permute(1, 2, 0)


def _size(frame: Tensor) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
