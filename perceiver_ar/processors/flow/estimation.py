"""Pairs of frames -> optical flow, by a model that sees one tile at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceiver_ar.processors.flow.features import FLOW_SCALE, frame_patches
from perceiver_ar.processors.flow.tiles import Tiling

T = TypeVar("T")


def estimate_flow(
    pairs: Iterable[Tensor], tiling: Tiling, predict: Callable[[Tensor], Tensor], micro_batch_size: int = 1
) -> Iterator[Tensor]:
    """The flow from the first to the second frame of each pair, (H, W, 2): x and y in pixels, fp32, on the CPU.

    Each tile is predicted once, `micro_batch_size` of them at a time, whichever pairs they belong to. As many, and the
    flows of one pair's tiles, are all that is in memory.

    Args:
        pairs: Of frames, (2, H, W, 3), uint8, all of the `tiling`'s frame shape.
        tiling: How frames are cut into tiles.
        predict: The model: patches (tiles, 2, 27, h, w), fp32 -> flow (tiles, h, w, 2) in units of `FLOW_SCALE`.
        micro_batch_size: How many tiles the model sees at once.

    Raises:
        ValueError: a pair is no pair of RGB frames of that size.
    """
    tiles = (tile for pair in pairs for tile in tiling.cut(_checked(pair)))
    flows = (
        flow
        for batch in _batched(tiles, micro_batch_size)
        for flow in predict(frame_patches(torch.stack(batch))).float().cpu()
    )
    for flows_of_pair in _batched(flows, len(tiling.origins)):
        yield tiling.blend(torch.stack(flows_of_pair)) * FLOW_SCALE


def flow_of_frames(
    frames: Iterable[NDArray[np.uint8]],
    tile_shape: tuple[int, int],
    predict: Callable[[Tensor], Tensor],
    micro_batch_size: int = 1,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Each frame (H, W, 3) but the last, with the flow (H, W, 2) from it to the next one.

    As `estimate_flow`, which tells of the arguments. Frames are read as they are needed.

    Raises:
        ValueError: a frame is no RGB image of bytes, or has another size than the first.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return
    tiling = Tiling(first.shape[:2], tile_shape)
    waiting: deque[NDArray[np.uint8]] = deque()

    def pairs() -> Iterator[Tensor]:
        for pair in pairwise(chain([first], iterator)):
            if pair[0].shape != pair[1].shape:
                raise ValueError(f"frames: must all have the shape {pair[0].shape}, not {pair[1].shape}")
            waiting.append(pair[0])
            yield torch.from_numpy(np.stack(pair))

    for flow in estimate_flow(pairs(), tiling, predict, micro_batch_size):
        yield waiting.popleft(), flow.numpy()


def _checked(pair: Tensor) -> Tensor:
    if pair.ndim != 4 or len(pair) != 2:
        raise ValueError(f"frames: a pair must be (2, H, W, 3), not {tuple(pair.shape)}")
    return pair


def _batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
