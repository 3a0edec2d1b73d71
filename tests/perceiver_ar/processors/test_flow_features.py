import numpy as np
import pytest
import torch

from perceiver_ar.processors.flow.features import frame_patches


def test_each_pixel_has_its_neighbours_row_by_row_colours_last_and_zeros_outside() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    patches = frame_patches(torch.from_numpy(frames)).numpy()
    assert patches.shape == (2, 27, 4, 5)
    for frame, row, column in np.ndindex(2, 4, 5):
        expected = []
        for above, left in np.ndindex(3, 3):
            y, x = row + above - 1, column + left - 1
            inside = 0 <= y < 4 and 0 <= x < 5
            expected += [value / 255 * 2 - 1 for value in frames[frame, y, x]] if inside else [0, 0, 0]
        np.testing.assert_allclose(patches[frame, :, row, column], expected, atol=1e-6)


@pytest.mark.parametrize(
    "frames", [torch.zeros(2, 4, 5, 4, dtype=torch.uint8), torch.zeros(2, 4, 5, 3), torch.zeros(4, 3)]
)
def test_anything_but_rgb_bytes_is_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^frames: must be \(..., H, W, 3\) of uint8, not \("):
        frame_patches(frames)
