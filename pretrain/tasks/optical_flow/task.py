"""What a run does that trains a Perceiver IO to estimate optical flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pretrain.tasks.optical_flow.config import GeneratedPairs, OpticalFlowRunConfig
from pretrain.tasks.perceiver_io import PerceiverIOTask

if TYPE_CHECKING:  # bad input is not to wait for torch
    from pretrain.distributed import Ranks
    from pretrain.tasks.examples import ExampleData
    from pretrain.tasks.optical_flow.objective import OpticalFlowObjective


class OpticalFlowTask(PerceiverIOTask[OpticalFlowRunConfig]):
    unit = "pixels"

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        return self._data_problems(), self._initial_model_problems()

    def open_data(self, ranks: Ranks) -> ExampleData:
        from pretrain.tasks.examples import ExampleData
        from pretrain.tasks.optical_flow.examples import open_examples

        return ranks.together(lambda: ExampleData(self._config, *open_examples(self._config)))

    def build(self) -> OpticalFlowObjective:
        from perceiver_ar.models.flow import OpticalFlow
        from pretrain.tasks.optical_flow.objective import OpticalFlowObjective

        return OpticalFlowObjective(OpticalFlow(self._config.model.architecture))

    def step_targets(self) -> int:
        height, width = self._config.model.frame_shape
        return self._step_pairs() * height * width

    def step_flops(self) -> float:
        import torch

        from perceiver_ar.cost import forward_flops_of
        from perceiver_ar.models.flow import OpticalFlow

        model = self._config.model
        patches = torch.zeros(1, 2, model.num_patch_channels, *model.image_shape, device="meta")
        # Gradients cost twice the forward pass.
        return 3.0 * self._step_pairs() * forward_flops_of(lambda: OpticalFlow(model.architecture), patches)

    def _step_pairs(self) -> int:
        directions = 2 if isinstance(self._config.data.train, GeneratedPairs) else 1
        return self._config.train.global_batch * directions

    def _data_problems(self) -> Iterator[str]:
        from pretrain.tasks.optical_flow.sources import open_sources

        train, _ = open_sources(self._config)
        if train.size < (batch := self._config.train.global_batch):
            yield f"train.global_batch: {batch} is more than the {train.size} training pairs"
