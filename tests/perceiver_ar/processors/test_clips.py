"""Clips of real files, written by the same library that everybody plays them with."""

from pathlib import Path

import av
import numpy as np
import pytest

from perceiver_ar.processors.clips import Clip, ClipShape, read_clip
from tests.perceiver_ar.processors.clip_files import write_clip

RATE, FPS, FRAMES = 8000, 16, 32
SHAPE = ClipShape(num_frames=8, height=24, width=32, num_samples=4000, frames_per_second=FPS)


@pytest.fixture(scope="module")
def recorded() -> Clip:
    """Two seconds: frame i has brightness 8 i, and the pitch of the sound rises."""
    video = np.zeros((FRAMES, 3, 48, 64), np.uint8)
    video += (8 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
    seconds = np.arange(2 * RATE) / RATE
    return Clip(video, np.sin(2 * np.pi * (200 + 150 * seconds) * seconds).astype(np.float32) / 2)


@pytest.fixture(scope="module")
def file(recorded, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "rising.mp4"
    write_clip(path, recorded, FPS, RATE)
    return path


@pytest.mark.parametrize("place, first", [(0, 0), (0.5, 12), (1, 24)])
def test_video_and_sound_are_those_of_the_place(recorded, file, place: float, first: int) -> None:
    clip = read_clip(file, SHAPE, place)
    assert clip.video.shape == (8, 3, 24, 32) and clip.audio.shape == (4000,)
    brightness = clip.video.reshape(8, -1).mean(1)
    assert np.abs(brightness - 8 * (first + np.arange(8))).max() < 3
    heard, played = clip.audio, recorded.audio[first * RATE // FPS :][:4000]
    assert np.abs(heard - played)[200:].mean() < 0.01


def test_frames_follow_the_time_and_not_the_numbers(file) -> None:
    clip = read_clip(file, ClipShape(4, 24, 32, 8000, frames_per_second=4), 0)
    assert np.abs(clip.video.reshape(4, -1).mean(1) - 8 * 4 * np.arange(4)).max() < 3


def test_what_is_too_short_ends_with_its_last_frame_and_silence(file) -> None:
    clip = read_clip(file, ClipShape(8, 24, 32, 32000, frames_per_second=2))
    assert np.abs(clip.video[-4:].astype(int) - clip.video[-1].astype(int)).max() == 0
    assert not clip.audio[17000:].any() and clip.audio[:15000].any()


def test_other_shapes_are_cut_to_the_middle(tmp_path) -> None:
    video = np.zeros((4, 3, 32, 96), np.uint8)
    video[:, 0, :, 32:64] = 255
    write_clip(tmp_path / "wide.mp4", Clip(video, None), 4, RATE)
    clip = read_clip(tmp_path / "wide.mp4", ClipShape(4, 16, 16, 8000, frames_per_second=4))
    assert clip.audio is None
    assert clip.video[:, 0, :, 2:-2].min() > 200 and clip.video[:, 2].max() < 60


def test_clips_that_say_they_are_turned_are_turned(tmp_path) -> None:
    """As telephones write them: what was above is stored on the left."""
    video = np.zeros((2, 32, 96, 3), np.uint8)
    video[:, :, :48] = 255
    with av.open(tmp_path / "upright.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 32, 96, "yuv420p"
        stream.set_display_rotation(-90)
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    clip = read_clip(tmp_path / "upright.mp4", ClipShape(2, 48, 16, 4000, frames_per_second=4))
    assert clip.video[:, :, 2:22].min() > 200 and clip.video[:, :, 26:].max() < 60


def test_damaged_files_are_refused_by_name(file, tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 500)
    (tmp_path / "cut.mp4").write_bytes(file.read_bytes()[:3000])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=f"{name}: is no video, or a damaged one"):
            read_clip(tmp_path / name, SHAPE)
    with pytest.raises(OSError, match=r"gone\.mp4: cannot be read \(No such file or directory\)"):
        read_clip(tmp_path / "gone.mp4", SHAPE)
