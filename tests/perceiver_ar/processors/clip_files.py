"""Clips as files of video, for the tests of what reads them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from perceiver_ar.processors.clips import Clip


def write_clip(path: Path, clip: Clip, frames_per_second: float, sample_rate: int) -> None:
    """Write an MP4 (H.264, and AAC where there is sound). Height and width must be even."""
    height, width = clip.video.shape[2:]
    with av.open(str(path), "w") as container:
        rate = Fraction(frames_per_second).limit_denominator(1001)
        picture = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        voice = None if clip.audio is None else container.add_stream("aac", rate=sample_rate, layout="mono")
        for image in clip.video:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if voice is not None and clip.audio is not None:
            sound = av.AudioFrame.from_ndarray(clip.audio[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = sample_rate, 0  # or what the encoder puts first counts as sound
            container.mux(voice.encode(sound))
            container.mux(voice.encode())
