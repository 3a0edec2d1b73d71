from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_ar.processors.flow.tiles import Tiling

PUBLISHED = (368, 496)
SIZES = [(368, 496), (436, 1024), (540, 960), (1080, 1920), (369, 497), (716, 972), (1, 1), (100, 1000), (400, 30)]


@pytest.mark.parametrize(
    ("frame_shape", "tops", "lefts"),
    [
        ((368, 496), [0], [0]),
        ((436, 1024), [0, 68], [0, 476, 528]),
        ((540, 960), [0, 172], [0, 464]),
        ((1080, 1920), [0, 348, 696, 712], [0, 476, 952, 1424]),
        ((716, 972), [0, 348], [0, 476]),
        ((100, 500), [0], [0, 4]),
    ],
)
def test_tiles_lie_where_the_published_model_has_them(
    frame_shape: tuple[int, int], tops: list[int], lefts: list[int]
) -> None:
    assert Tiling(frame_shape, PUBLISHED).origins == [(top, left) for top in tops for left in lefts]


SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=50)
@given(SHAPES, SHAPES)
def test_tiles_cover_every_frame_with_some_overlap_and_none_too_many(
    frame_shape: tuple[int, int], tile_shape: tuple[int, int]
) -> None:
    tiling = Tiling(frame_shape, tile_shape)
    assert tiling.min_overlap == min(tile_shape) // 4
    assert len(set(tiling.origins)) == len(tiling.origins)
    for axis in (0, 1):
        starts = sorted({origin[axis] for origin in tiling.origins})
        side, tile, overlap = frame_shape[axis], tile_shape[axis], tiling.min_overlap
        assert starts[0] == 0
        assert starts[-1] == max(0, side - tile)
        assert all(tile - (after - before) >= overlap for before, after in pairwise(starts))
        assert len(starts) == max(1, -(-(side - overlap) // (tile - overlap)))


def test_tiles_hold_what_lies_there_and_beyond_the_frame_its_last_row_or_column() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 15, 3), dtype=np.uint8))
    tiling = Tiling((5, 15), (8, 11))
    tiles = tiling.cut(frames)
    assert len(tiles) == len(tiling.origins) == 2
    for tile, (top, left) in zip(tiles, tiling.origins, strict=True):
        for row, column in np.ndindex(8, 11):
            expected = frames[:, min(top + row, 4), min(left + column, 14)]
            assert tile[:, row, column].equal(expected)


@pytest.mark.parametrize("frame_shape", SIZES)
def test_where_all_tiles_agree_the_flow_is_theirs_exactly(frame_shape: tuple[int, int]) -> None:
    tiling = Tiling(frame_shape, PUBLISHED)
    constant = torch.tensor([0.1234567, -7.654321e-3])
    flow = tiling.blend(constant.expand(len(tiling.origins), *PUBLISHED, 2))
    assert flow.shape == (*frame_shape, 2)
    assert flow.dtype == torch.float32
    assert (flow == constant).all()


def test_pixels_are_means_weighted_by_the_distances_to_the_edges_of_tiles() -> None:
    frame_shape, (height, width) = (8, 14), (5, 8)
    tiling = Tiling(frame_shape, (height, width))
    tiles = np.random.default_rng(0).normal(size=(len(tiling.origins), height, width, 2)).astype(np.float32)
    expected = np.zeros((*frame_shape, 2))
    for y, x in np.ndindex(*frame_shape):
        values, weights = [], []
        for tile, (top, left) in zip(tiles, tiling.origins, strict=True):
            row, column = y - top, x - left
            if 0 <= row < height and 0 <= column < width:
                values.append(tile[row, column])
                weights.append(min(row + 1, height - row) * min(column + 1, width - column))
        expected[y, x] = np.average(values, axis=0, weights=weights)
    np.testing.assert_allclose(tiling.blend(torch.from_numpy(tiles)), expected, atol=1e-6)


@pytest.mark.parametrize("frame_shape", [(436, 1024), (540, 960)])
def test_there_is_no_seam_where_tiles_disagree(frame_shape: tuple[int, int]) -> None:
    """Tiles whose flows differ by one pixel: from each pixel to the next, the flow changes by a fraction of that."""
    tiling = Tiling(frame_shape, PUBLISHED)
    parity = torch.arange(len(tiling.origins)) % 2
    flow = tiling.blend(parity.view(-1, 1, 1, 1).expand(-1, *PUBLISHED, 2).float())
    assert flow.min() == 0
    assert flow.max() == 1
    assert max(flow.diff(dim=0).abs().max(), flow.diff(dim=1).abs().max()) < 0.06


def test_frames_of_no_or_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^frame_shape: must be at least \(1, 1\), not \(0, 5\)$"):
        Tiling((0, 5), (8, 11))
    with pytest.raises(ValueError, match=r"^frames: must be 30x20 pixels, not 31x20$"):
        Tiling((20, 30), (8, 11)).cut(torch.zeros(2, 20, 31, 3))
