"""What the flow of a video is written to: a video, an image, `.flo` files. Each appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceiver_ar.processors.files import written_whole
from perceiver_ar.processors.flow.flo import write_flo
from perceiver_ar.processors.video import Frame, write_video

Flow = NDArray[np.float32]
Add = Callable[[Frame, Flow], None]
"""Takes a frame and the flow from it to the next one."""


@contextmanager
def video_output(path: Path, draw: Callable[[Frame, Flow], Frame], rate: Fraction) -> Iterator[Add]:
    """A video of what `draw` makes of each frame and its flow."""
    with write_video(path, rate) as add:
        yield lambda frame, flow: add(draw(frame, flow))


@contextmanager
def image_output(path: Path, draw: Callable[[Frame, Flow], Frame]) -> Iterator[Add]:
    """An image of what `draw` makes of a frame and its flow."""

    def add(frame: Frame, flow: Flow) -> None:
        with written_whole(path) as temporary:
            Image.fromarray(draw(frame, flow)).save(temporary)

    yield add


@contextmanager
def flo_output(folder: Path) -> Iterator[Add]:
    """``frame_0001.flo`` and so on, named as Sintel's, by the number of the first frame. The folder is made."""
    folder.mkdir(parents=True)
    number = 0

    def add(frame: Frame, flow: Flow) -> None:
        nonlocal number
        number += 1
        write_flo(folder / f"frame_{number:04}.flo", flow)

    yield add
