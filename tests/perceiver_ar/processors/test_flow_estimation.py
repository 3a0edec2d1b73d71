from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.models.perceiver_config import DecoderConfig, EncoderConfig, OpticalFlowConfig
from perceiver_ar.processors.flow.estimation import estimate_flow, flow_of_frames
from perceiver_ar.processors.flow.features import frame_patches
from perceiver_ar.processors.flow.tiles import Tiling

TILE = (24, 40)


def frames(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def first_red_and_second_green(patches: Tensor) -> Tensor:
    """Stands for a model: it gives each pixel two of its own values, so that what goes where can be seen."""
    return torch.stack([patches[:, 0, 12], patches[:, 1, 13]], dim=-1)


@pytest.fixture(scope="module")
def model() -> OpticalFlow:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        num_latents=8, latent_channels=16, num_blocks=1, layers_per_block=1, self_attention_heads=2, init_scale=0.5
    )
    decoder = DecoderConfig(cross_attention_residual=False, init_scale=0.5)
    config = OpticalFlowConfig(
        image_shape=TILE, num_feature_channels=8, num_frequency_bands=4, encoder=encoder, decoder=decoder
    )
    return OpticalFlow(config).eval()


@pytest.mark.parametrize("frame_shape", [(540, 960), (30, 20)])
def test_constant_predictions_become_constant_flow_of_twenty_times_as_many_pixels(
    frame_shape: tuple[int, int],
) -> None:
    constant = torch.tensor([0.1234567, -7.654321e-3])
    tiling = Tiling(frame_shape, (368, 496))

    def predict(patches: Tensor) -> Tensor:
        assert patches.shape == (1, 2, 27, 368, 496)
        return constant.expand(1, 368, 496, 2)

    [flow] = estimate_flow([frames(2, *frame_shape)], tiling, predict)
    assert flow.shape == (*frame_shape, 2)
    assert (flow == 20 * constant).all()


@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
def test_each_tile_is_predicted_once_in_micro_batches_that_span_pairs(micro_batch_size: int) -> None:
    sizes = []

    def predict(patches: Tensor) -> Tensor:
        sizes.append(len(patches))
        return first_red_and_second_green(patches)

    several = frames(4, 30, 70)
    pairs = [several[i : i + 2] for i in range(3)]
    tiling = Tiling((30, 70), TILE)
    flows = list(estimate_flow(pairs, tiling, predict, micro_batch_size))

    assert sum(sizes) == 3 * len(tiling.origins) == 12
    assert max(sizes) == min(micro_batch_size, 12)
    for flow, pair in zip(flows, pairs, strict=True):
        values = np.stack([pair[0, ..., 0], pair[1, ..., 1]], axis=-1)
        np.testing.assert_allclose(flow, 20 * (values / 255 * 2 - 1), atol=1e-4)


def test_frames_of_the_model_s_size_get_what_the_model_says(model: OpticalFlow) -> None:
    pair = frames(2, *TILE)
    with torch.no_grad():
        [flow] = estimate_flow([pair], Tiling(TILE, TILE), model)
        expected = 20 * model(frame_patches(pair[None]))[0]
    assert expected.std() > 0
    assert flow.equal(expected)


def test_flow_of_frames_goes_from_each_to_the_next_and_reads_no_further_than_needed() -> None:
    several = frames(6, 10, 12).numpy()
    read = 0

    def reader() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in several:
            read += 1
            yield frame

    flows = flow_of_frames(reader(), TILE, first_red_and_second_green)
    for number, (frame, flow) in enumerate(flows):
        assert (frame == several[number]).all()
        np.testing.assert_allclose(flow[..., 0], (several[number][..., 0] / 255 * 2 - 1) * 20, atol=1e-4)
        np.testing.assert_allclose(flow[..., 1], (several[number + 1][..., 1] / 255 * 2 - 1) * 20, atol=1e-4)
        assert read == number + 2
    assert number == 4


def test_too_few_frames_have_no_flow() -> None:
    assert list(flow_of_frames([], TILE, first_red_and_second_green)) == []
    assert list(flow_of_frames([frames(1, 10, 12)[0].numpy()], TILE, first_red_and_second_green)) == []


def test_what_is_no_pair_of_equal_frames_is_refused() -> None:
    unequal = [np.zeros((10, 12, 3), np.uint8), np.zeros((10, 13, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"^frames: must all have the shape \(10, 12, 3\), not \(10, 13, 3\)$"):
        list(flow_of_frames(unequal, TILE, first_red_and_second_green))
    grey = [np.zeros((10, 12, 1), np.uint8)] * 2
    with pytest.raises(ValueError, match=r"^frames: must be \(..., H, W, 3\) of uint8, not \(1, 2, 24, 40, 1\)"):
        list(flow_of_frames(grey, TILE, first_red_and_second_green))
    with pytest.raises(ValueError, match=r"^frames: a pair must be \(2, H, W, 3\), not \(3, 10, 12, 3\)$"):
        list(estimate_flow([frames(3, 10, 12)], Tiling((10, 12), TILE), first_red_and_second_green))
