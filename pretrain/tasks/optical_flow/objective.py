"""Optical flow: a batch of pairs of frames -> loss."""

from __future__ import annotations

import torch
from torch import Tensor

from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.processors.flow.estimation import estimate_flow
from perceiver_ar.processors.flow.features import FLOW_SCALE, frame_patches
from perceiver_ar.processors.flow.tiles import Tiling
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput


class OpticalFlowObjective(Objective):
    """An optical flow model with its loss: the end-point error of valid pixels, in pixels."""

    def __init__(self, model: OpticalFlow) -> None:
        super().__init__()
        self.model: OpticalFlow = model

    def forward(self, batch: ExampleBatch) -> TaskOutput:
        flow, valid = batch.tensors["flow"], batch.tensors["valid"]
        errors = (self._estimate(batch) - flow).norm(dim=-1) * valid

        def summed(values: Tensor) -> Tensor:
            return values.flatten(1).sum(dim=1, keepdim=True)

        losses = summed(errors)
        if torch.is_grad_enabled():
            return TaskOutput(losses.sum(), losses.detach(), {})
        measures = flow_measures(errors, flow, valid, batch.tensors["occluded"])
        return TaskOutput(losses.sum(), losses, {name: summed(values) for name, values in measures.items()})

    def _estimate(self, batch: ExampleBatch) -> Tensor:
        """Flow in pixels, like `batch.tensors["flow"]`."""
        frames, flow = batch.tensors["frames"], batch.tensors["flow"]
        rows, directions, *size = flow.shape[:4]
        if tuple(size) == self.model.config.image_shape:
            # The way back is that from the second frame to the first.
            pairs = torch.stack([frames, frames.flip(1)][:directions], dim=1).flatten(0, 1)
            return self.model(frame_patches(pairs)).float().unflatten(0, (rows, directions)) * FLOW_SCALE
        estimated = torch.zeros_like(flow)
        for row, (height, width) in enumerate(batch.tensors["sizes"].tolist()):
            pair = frames[row, :, :height, :width]
            for direction, ordered in enumerate([pair, pair.flip(0)][:directions]):
                estimated[row, direction, :height, :width] = self._estimate_whole(ordered, rows)
        return estimated

    def _estimate_whole(self, pair: Tensor, micro_batch: int) -> Tensor:
        """Frames (2, H, W, 3) of any size -> flow (H, W, 2) in pixels, by tiles that overlap."""
        tile = self.model.config.image_shape
        height, width = pair.shape[1:3]
        tiling = Tiling((height, width), (tile[0], tile[1]))
        [flow] = estimate_flow([pair], tiling, self.model, micro_batch)
        return flow


def flow_measures(errors: Tensor, flow: Tensor, valid: Tensor, occluded: Tensor) -> dict[str, Tensor]:
    """What is reported of each pixel, (..., H, W), 0 where flow is not known; means of them are the usual measures.

    `end_point_error` is in pixels, and so is `zero_flow_error`, that of a model which says that nothing moves.
    `end_point_error_occluded` is the part of it that comes from occluded pixels. `over_Npx` are shares of pixels with a
    larger error; `fl_all` is KITTI's: over 3 pixels and over 5 % of the motion.

    Args:
        errors: End-point errors, (..., H, W), 0 where flow is not known.
        flow: The truth, (..., H, W, 2).
        valid: Where it is known, (..., H, W) bool.
        occluded: What the other frame does not show, (..., H, W) bool.
    """
    lengths = flow.norm(dim=-1) * valid
    shares = {f"over_{limit}px": (errors > limit).float() for limit in (1, 3, 5)}
    outliers = ((errors > 3) & (errors > 0.05 * lengths)).float()
    return {
        "end_point_error": errors,
        "end_point_error_occluded": errors * occluded,
        **shares,
        "fl_all": outliers,
        "zero_flow_error": lengths,
    }
