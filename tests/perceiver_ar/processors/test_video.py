import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from perceiver_ar.processors.video import Frame, read_images, read_video, write_video

RATE = Fraction(30000, 1001)


def smooth_frames(count: int, height: int = 48, width: int = 64) -> list[Frame]:
    """Gradients that move, which codecs keep well."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack([2 * x + 9 * i, 3 * y + 20, 255 - x - y], axis=-1).clip(0, 255).astype(np.uint8) for i in range(count)
    ]


def write(path: Path, frames: list[Frame]) -> None:
    with write_video(path, RATE) as add:
        for frame in frames:
            add(frame)


@pytest.mark.parametrize("suffix", [".mp4", ".MKV", ".mov", ".webm"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    frames = smooth_frames(5)
    write(path, frames)
    video = read_video(path)
    assert (video.rate, video.length) == (RATE, 5)
    for read, written in zip(video.frames, frames, strict=True):
        assert read.dtype == np.uint8
        assert np.abs(read.astype(int) - written).mean() < 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    frames = smooth_frames(2, 31, 45)
    write(tmp_path / "a.mp4", frames)
    first = next(read_video(tmp_path / "a.mp4").frames)
    assert first.shape == (32, 46, 3)
    assert np.abs(first[:31, :45].astype(int) - frames[0]).mean() < 3


def test_videos_that_say_they_are_turned_are_turned(tmp_path: Path) -> None:
    """As telephones write them: upright pictures are stored lying."""
    upright = smooth_frames(1, 64, 48)[0]
    lying = np.ascontiguousarray(np.rot90(upright, -1))
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(stream.encode())
    [frame] = read_video(tmp_path / "a.mp4").frames
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("frames_before", [0, 1, 3])
def test_an_interrupted_video_is_not_there(tmp_path: Path, frames_before: int) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), write_video(path, RATE) as add:
        for frame in smooth_frames(frames_before):
            add(frame)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_names_and_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.gif: a video's name must end in \.mp4, \.mov, \.mkv, \.webm$"):
        write(tmp_path / "a.gif", [])
    with pytest.raises(OSError, match=r"/nowhere/a\.mp4: cannot be written: No such file or directory$"):
        write(tmp_path / "nowhere" / "a.mp4", smooth_frames(1))


def test_files_that_are_no_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    write(tmp_path / "half.mp4", smooth_frames(5))
    (tmp_path / "half.mp4").write_bytes((tmp_path / "half.mp4").read_bytes()[:1500])

    for name in ("text.mp4", "half.mp4"):
        with pytest.raises(ValueError, match=rf"/{name}: is no video that can be read \(Invalid data .*\)$"):
            read_video(tmp_path / name)
    with pytest.raises(ValueError, match=r"/sound\.wav: has no video, only sound or text$"):
        read_video(tmp_path / "sound.wav")
    with pytest.raises(FileNotFoundError, match=r"/none\.mp4: no such file$"):
        read_video(tmp_path / "none.mp4")


def test_damage_is_told_with_the_frame_and_frames_before_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write(path, list(noise))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    path.write_bytes(data)

    read = []
    with pytest.raises(ValueError, match=r"/a\.mp4: is damaged: frame \d+ cannot be decoded") as caught:
        read.extend(read_video(path).frames)  # extend keeps what came before
    assert f"frame {len(read)} " in str(caught.value)


def test_images_are_frames_whatever_their_colours(tmp_path: Path) -> None:
    colours = smooth_frames(1)[0]
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "opaque.png")
    paths = [tmp_path / name for name in ("a.png", "grey.png", "opaque.png")]
    images = read_images(paths)
    assert (images.rate, images.length) == (None, 3)
    first, grey, opaque = images.frames
    assert (first == colours).all()
    assert (grey == colours[..., :1]).all()
    assert (opaque == colours).all()


def test_images_of_another_size_or_damaged_are_named(tmp_path: Path) -> None:
    for name, (height, width) in {"a.png": (48, 64), "b.png": (48, 66)}.items():
        Image.fromarray(smooth_frames(1, height, width)[0]).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
    (tmp_path / "d.png").write_text("text")
    problems = {
        "b.png": r"b\.png: is 66x48 pixels, but .*/a\.png is 64x48: frames must have one size$",
        "c.png": r"c\.png: is not an image that can be decoded \(.*\)$",
        "d.png": r"d\.png: is not an image that can be decoded \(no known image format\)$",
    }
    for name, problem in problems.items():
        frames = read_images([tmp_path / "a.png", tmp_path / name]).frames
        assert next(frames).shape == (48, 64, 3)
        with pytest.raises(ValueError, match=problem):
            next(frames)
