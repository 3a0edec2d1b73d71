"""Videos and series of images as frames, and frames as a video. Frames are RGB: (H, W, 3), uint8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from perceiver_ar.processors.files import written_whole
from perceiver_ar.processors.formats import CODECS
from perceiver_ar.processors.image import decode_image

_PIXELS = "yuv420p"
"""The format that every player shows; its sides are even."""
_QUALITY = "18"
"""Constant rate factor: visually lossless."""

Frame = NDArray[np.uint8]


class Frames(NamedTuple):
    frames: Iterator[Frame]
    rate: Fraction | None
    """Frames per second; None for images."""
    length: int | None
    """How many there are, as far as can be known before all are read; of some formats it is an estimate."""


def read_video(path: str | Path) -> Frames:
    """The frames of a video as it is shown, turned if it says so. Each is decoded when it is its turn.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no video; while frames are read, also that it is damaged, and from where on.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        container = av.open(path)
    except PermissionError:
        raise PermissionError(f"{path}: cannot be read: permission denied") from None
    except av.FFmpegError as error:
        raise ValueError(f"{path}: is no video that can be read ({error.strerror})") from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: has no video, only sound or text")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate
    length = stream.frames or None
    if length is None and container.duration is not None and rate is not None:
        length = round(container.duration / av.time_base * rate)
    return Frames(_decode(path, container), rate, length)


def _decode(path: str | Path, container: InputContainer) -> Iterator[Frame]:
    number = 0
    with container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # Streams may change their size midway.
        size: dict[str, Any] = dict(width=stream.width, height=stream.height)
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(f"{path}: is damaged: frame {number} cannot be decoded")
                number += 1
                yield np.rot90(frame.to_ndarray(format="rgb24", **size), frame.rotation // 90)
        except av.FFmpegError as error:
            raise ValueError(f"{path}: is damaged: frame {number} cannot be decoded ({error.strerror})") from None


def read_images(paths: Sequence[Path]) -> Frames:
    """Image files as frames, in that order, each read when it is its turn.

    Raises, while frames are read:
        OSError: a file cannot be read.
        ValueError: one is no image, is damaged, or has another size than the first.
    """
    return Frames(_decode_images(paths), None, len(paths))


def _decode_images(paths: Sequence[Path]) -> Iterator[Frame]:
    first: tuple[int, ...] = ()
    for path in paths:
        try:
            frame = decode_image(path, channels=3).permute(1, 2, 0).numpy()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(
                f"{path}: is {frame.shape[1]}x{frame.shape[0]} pixels, but {paths[0]} is {first[1]}x{first[0]}: "
                "frames must have one size"
            )
        yield frame


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[Callable[[Frame], None]]:
    """Write a video, whole or not at all; call what it yields with each frame.

    Odd sides are made even by repeating the last row or column.

    Raises:
        OSError: the file cannot be written.
        ValueError: the name does not end as one of `CODECS`.
    """
    if path.suffix.lower() not in CODECS:
        raise ValueError(f"{path}: a video's name must end in {', '.join(CODECS)}")
    try:
        with written_whole(path) as temporary, av.open(temporary, "w") as container:
            stream: Any = container.add_stream(
                CODECS[path.suffix.lower()], rate=rate, pix_fmt=_PIXELS, options={"crf": _QUALITY}
            )

            def add(frame: Frame) -> None:
                height, width = frame.shape[:2]
                even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                if not stream.codec_context.is_open:
                    stream.height, stream.width = even.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield add
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from None
