"""`python -m perceiver_ar.processors.flow`: what it writes and what it refuses."""

import json
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from perceiver_ar.hf import PerceiverIOForOpticalFlow
from perceiver_ar.processors.flow.__main__ import main
from perceiver_ar.processors.flow.estimation import flow_of_frames
from perceiver_ar.processors.flow.flo import read_flo
from perceiver_ar.processors.flow.rendering import render_flow, side_by_side
from perceiver_ar.processors.video import read_video, write_video
from tests.perceiver_ar.hf.perceiver_models import build

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "perceiver_ar.processors.flow"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build("optical_flow").save_pretrained(folder)
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    write_frames(path, 4)
    return path


def write_frames(path: Path, count: int, height: int = 20, width: int = 30) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    with write_video(path, Fraction(24)) as add:
        for frame in frames:
            add(frame)


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@torch.no_grad()
def expected_flows(video: Path, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    model = PerceiverIOForOpticalFlow.from_pretrained(folder)
    return list(flow_of_frames(read_video(video).frames, (8, 12), lambda patches: model(patches).logits))


def test_a_video_becomes_a_video_with_its_flow_and_flo_files(
    video: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(video, "--model", model, "--out", tmp_path / "out.mp4", "--flo", tmp_path / "flo", "--micro-batch", 5)

    expected = expected_flows(video, model)
    written = sorted((tmp_path / "flo").iterdir())
    assert [file.name for file in written] == ["frame_0001.flo", "frame_0002.flo", "frame_0003.flo"]
    for file, (_, flow) in zip(written, expected, strict=True):
        np.testing.assert_allclose(read_flo(file), flow, atol=1e-5)
    shown = read_video(tmp_path / "out.mp4")
    assert shown.rate == 24
    for picture, (frame, flow) in zip(shown.frames, expected, strict=True):
        assert np.abs(picture.astype(int) - side_by_side(frame, flow)).mean() < 25  # of noise, videos keep little
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out.mp4'}\n{tmp_path / 'flo'}\n"
    assert "3 frames, " in err


def test_a_folder_of_images_is_read_in_the_order_of_numbers(model: Path, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    folder = tmp_path / "frames"
    folder.mkdir()
    for name, frame in zip(("f9.png", "f10.png", "f11.png"), frames, strict=True):
        Image.fromarray(frame).save(folder / name)
    (folder / "notes.txt").write_text("no frame")

    run(folder, "--model", model, "--out", tmp_path / "moved.png", "--flow-only", "--max-flow", 0.5)

    loaded = PerceiverIOForOpticalFlow.from_pretrained(model)
    with torch.no_grad():
        [(_, flow), _] = flow_of_frames(frames, (8, 12), lambda patches: loaded(patches).logits)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "moved.png")), render_flow(flow, 0.5))


def test_only_the_frames_asked_for_are_read(video: Path, model: Path, tmp_path: Path) -> None:
    run(video, "--model", model, "--out", tmp_path / "out.webm", "--frames", 3, "--fps", 5)
    shown = read_video(tmp_path / "out.webm")
    assert shown.rate == 5
    assert len(list(shown.frames)) == 2


def test_videos_that_end_too_early_are_warned_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frames(tmp_path / "in.mkv", 30, height=40, width=60)
    data = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "in.mkv").write_bytes(data[: len(data) // 4])
    run(tmp_path / "in.mkv", "--model", model, "--flo", tmp_path / "flo", "--micro-batch", 100)
    assert f"warning: {tmp_path / 'in.mkv'}: ended after " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("in.mp4", "--out, --flo: nothing to write, give one of them or both (see --help)"),
        ("in.mp4 --out x.gif", "--out: x.gif must end in .mp4, .mov, .mkv, .webm or .png"),
        ("in.mp4 --out no/x.mp4", "--out: there is no folder no"),
        ("in.mp4 --out in.mp4", "in.mp4: exists; choose another name, or remove it"),
        ("in.mp4 --flo frames", "frames: exists; choose another name, or remove it"),
        ("none.mp4 --out x.mp4", "none.mp4: no such file or folder"),
        ("a.png --out x.mp4", "a.png: is one image, motion needs two or more, or a video"),
        ("frames --out x.mp4", "frames: has 0 images, motion needs two or more (.png, .jpg"),
        ("one.mp4 --out x.mp4", "one.mp4: has fewer than two frames, there is no motion to see"),
        ("text.mp4 --out x.mp4", "text.mp4: is no video that can be read (Invalid data"),
        ("a.png text.mp4 --out x.mp4", "text.mp4: is not an image that can be decoded (no known image format)"),
        ("a.png wide.png --out x.mp4", "wide.png: is 31x20 pixels, but a.png is 30x20: frames must have one size"),
        ("in.mp4 --out x.mp4 --frames 1", "--frames: must be at least 2, not 1: motion is from one frame to another"),
        ("in.mp4 --out x.mp4 --fps 0", "--fps: must be from 0.1 to 1000, not 0"),
        ("in.mp4 --out x.mp4 --max-flow nan", "--max-flow: must be a positive number of pixels, not nan"),
        ("in.mp4 --out x.mp4 --micro-batch 0", "--micro-batch: must be at least 1, not 0"),
        ("in.mp4 --out x.gif --flo frames", "; frames: exists; choose another name, or remove it"),
        ("in.mp4 --out x.mp4 --flo x.mp4", "--out, --flo: are both x.mp4, give them different names"),
        ("in.mp4 --out x.mp4 --model text", "text/config.json: is a model of type bert, not a Perceiver"),
        ("in.mp4 --out x.mp4 --model frames", "frames/config.json: no such file"),
        ("in.mp4 --out x.mp4 --model classifier", "classifier: is no model of optical flow"),
        ("in.mp4 --out x.mp4 --model mistyped", "mistyped/config.json: image_shape cannot be 5"),
        ("in.mp4 --out x.mp4 --model lacking", "lacking: weight output.weight is absent, by the model's"),
        ("in.mp4 --out x.mp4 --model damaged", "model.safetensors: is damaged ("),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: str, problem: str, video: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    write_frames(tmp_path / "one.mp4", 1)
    Image.new("RGB", (30, 20)).save("a.png")
    Image.new("RGB", (31, 20)).save("wide.png")
    made_of = json.loads((model / "config.json").read_text())
    for folder, config in {
        "text": {"model_type": "bert"},
        "classifier": {"model_type": "perceiver-image-classifier"},
        "mistyped": {"model_type": "perceiver-optical-flow", "image_shape": 5},
        "lacking": made_of,
        "damaged": made_of,
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    weights = load_file(model / "model.safetensors")
    del weights["model.output.weight"]
    save_file(weights, tmp_path / "lacking" / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises((OSError, ValueError)) as caught:
        run(*arguments.split(), *([] if "--model" in arguments else ["--model", model]))

    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_mistakes_end_the_command_with_one_line_and_code_2() -> None:
    ended = subprocess.run([*COMMAND, "none.mp4", "--model", "m"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --out, --flo: nothing to write, give one of them or both (see --help)\n"


@pytest.mark.slow
def test_an_interrupted_command_leaves_no_half_file(model: Path, tmp_path: Path) -> None:
    write_frames(tmp_path / "in.mp4", 200, height=100, width=100)
    arguments = [tmp_path / "in.mp4", "--model", model, "--out", tmp_path / "out.mp4", "--flo", tmp_path / "flo"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "flo" / "frame_0002.flo").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.endswith("\ninterrupted\n")
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "flo"}
    for path in (tmp_path / "flo").iterdir():
        assert read_flo(path).shape == (100, 100, 2)
