"""Clips: some frames of a video file and the sound that belongs to them, read by PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClipShape:
    """What a clip consists of."""

    num_frames: int
    height: int
    width: int
    num_samples: int
    """Of sound, during all frames."""
    frames_per_second: float

    @property
    def seconds(self) -> float:
        return self.num_frames / self.frames_per_second

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return round(self.num_samples / self.seconds)


@dataclass(frozen=True)
class Clip:
    video: NDArray[np.uint8]
    """(frames, 3, height, width)."""
    audio: NDArray[np.float32] | None
    """(samples,) in [-1, 1]; None where the file has no sound."""


def read_clip(path: Path, shape: ClipShape, place: float = 0.5) -> Clip:
    """A clip of the video at `path`, which begins at `place` of all moments it could begin at (0 first, 1 last).

    Frames are those that show at the clip's times, scaled to cover the clip's size and cropped to their centre. A video
    that is shorter ends with its last frame and with silence. Sound is mixed to one channel and resampled.

    Raises:
        OSError: `path` cannot be read.
        ValueError: it holds no video, or a damaged one.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video stream")
            begin = _origin(container) + place * max(0.0, _seconds(container) - shape.seconds)
            return Clip(_frames(container, begin, shape), _sound(container, begin, shape))
    except OSError as error:  # some of PyAV's errors are OSErrors and ValueErrors too, with other words
        raise OSError(f"{path}: cannot be read ({error.strerror})") from None
    except av.FFmpegError as error:
        raise ValueError(f"{path}: is no video, or a damaged one ({error.strerror})") from None


def _origin(container: InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _seconds(container: InputContainer) -> float:
    stream = container.streams.video[0]
    if stream.duration is None or stream.time_base is None:  # Matroska keeps no length of a stream
        return (container.duration or 0) / av.time_base
    return float(stream.duration * stream.time_base)


def _frames(container: InputContainer, begin: float, shape: ClipShape) -> NDArray[np.uint8]:
    times = begin + np.arange(shape.num_frames) / shape.frames_per_second
    container.seek(int(begin * av.time_base), backward=True)
    shown: list[NDArray[np.uint8]] = []
    latest = None
    for frame in container.decode(container.streams.video[0]):
        if frame.time is None:
            raise ValueError(f"{container.name}: its frames have no times")
        # A frame shows until the next one begins: up to now it was `latest`.
        due = int(np.searchsorted(times, frame.time - 1e-6)) - len(shown)
        if due > 0:
            shown += [_picture(latest or frame, shape)] * due
        latest = frame
        if len(shown) == len(times):
            break
    if latest is None:
        raise ValueError(f"{container.name}: no frame can be decoded")
    if missing := len(times) - len(shown):
        shown += [_picture(latest, shape)] * missing
    return np.stack(shown)


def _picture(frame: VideoFrame, shape: ClipShape) -> NDArray[np.uint8]:
    """Turned if it says so, scaled to cover (height, width), and cropped: (3, height, width)."""
    quarters = frame.rotation // 90
    covered = (shape.width, shape.height) if quarters % 2 else (shape.height, shape.width)
    scale = max(covered[0] / frame.height, covered[1] / frame.width)
    height, width = (max(1, round(side * scale)) for side in (frame.height, frame.width))
    image = np.asarray(frame.reformat(width=width, height=height, format="rgb24").to_ndarray(), np.uint8)
    image = np.rot90(image, quarters)
    top, left = (image.shape[0] - shape.height) // 2, (image.shape[1] - shape.width) // 2
    return image[top : top + shape.height, left : left + shape.width].transpose(2, 0, 1)


def _sound(container: InputContainer, begin: float, shape: ClipShape) -> NDArray[np.float32] | None:
    if not container.streams.audio:
        return None
    rate, needed = shape.sample_rate, shape.num_samples
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    container.seek(int(begin * av.time_base), backward=True)
    pieces: list[NDArray[np.float32]] = []
    first = 0
    for frame in container.decode(container.streams.audio[0]):
        if not pieces:
            first = round(((frame.time or 0.0) - begin) * rate)
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        if first + sum(map(len, pieces)) >= needed:
            break
    pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    heard = np.concatenate([np.zeros(max(0, first), np.float32), *pieces])[max(0, -first) :][:needed]
    return np.pad(heard, (0, needed - len(heard))).clip(-1, 1)
