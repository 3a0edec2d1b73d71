"""`.flo` files, Middlebury's format of optical flow (https://vision.middlebury.edu/flow/), also that of Sintel.

Little-endian: the number 202021.25, which spells PIEH, then width and height as int32, then x and y of each pixel as
float32, row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perceiver_ar.processors.files import written_whole

_MAGIC = b"PIEH"
_HEADER = 12


def read_flo(path: str | Path) -> NDArray[np.float32]:
    """The flow in a file, (H, W, 2): x and y in pixels. What its maker did not know is larger than 1e9.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or not whole.
    """
    data = Path(path).read_bytes()
    if data[:4] != _MAGIC or len(data) < _HEADER:
        raise ValueError(f"{path}: is no .flo file, which begins with {_MAGIC.decode()}")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if width < 1 or height < 1 or len(data) != _HEADER + 8 * width * height:
        raise ValueError(f"{path}: is damaged: {len(data):,} bytes do not hold a flow of {width}x{height} pixels")
    return np.frombuffer(data, "<f4", offset=_HEADER).astype(np.float32).reshape(height, width, 2)


def write_flo(path: str | Path, flow: ArrayLike) -> None:
    """Write flow (H, W, 2), whole or not at all.

    Raises:
        OSError: the file cannot be written.
        ValueError: the flow has another shape.
    """
    values = np.asarray(flow, "<f4")
    if values.ndim != 3 or values.shape[2] != 2 or not values.size:
        raise ValueError(f"flow: must be (H, W, 2), not {values.shape}")
    height, width, _ = values.shape
    with written_whole(Path(path)) as temporary:
        temporary.write_bytes(_MAGIC + np.array([width, height], "<i4").tobytes() + values.tobytes())
