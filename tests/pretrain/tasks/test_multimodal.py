"""Training on clips: what is read and drawn, what is refused, the loss, and a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceiver_ar.processors.clips import Clip
from pretrain.config import load_config, read_config
from pretrain.errors import InputError
from pretrain.tasks import open_task
from pretrain.tasks.multimodal.clips import ClipData, ClipExamples
from pretrain.tasks.multimodal.config import LossSection
from pretrain.tasks.multimodal.folder import VideoFolder
from pretrain.tasks.multimodal.objective import MultimodalObjective
from pretrain.tasks.multimodal.synthetic import CLASSES, SyntheticClips
from tests.perceiver_ar.processors.clip_files import write_clip

ROOT = Path(__file__).parents[3]
WORKER = ROOT / "tests" / "pretrain" / "train_worker.py"
RATE = 8000


def settings(**sections: Any) -> dict[str, Any]:
    encoder = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1}
    model = {
        "video_shape": [4, 8, 8],
        "video_patch": [2, 4, 4],
        "video_frequency_bands": 2,
        "num_audio_samples": 4000,
        "audio_patch": 100,
        "audio_frequency_bands": 2,
        "num_classes": 8,
        "num_label_query_channels": 8,
        "num_output_channels": 8,
        "encoder": encoder | {"layers_per_block": 1, "init_scale": 0.3},
    }
    run = {
        "task": "multimodal",
        "run": {"dir": "unused", "seed": 3},
        "model": model,
        "data": {"synthetic": {"clips": 16, "validation_clips": 8}, "frames_per_second": 8, "threads": 2},
        "loss": {"pixels": 5, "audio_patches": 3},
        "train": {"steps": 2, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
    }
    return run | {name: run.get(name, {}) | fields for name, fields in sections.items()}


def config(**sections: Any) -> Any:
    return read_config(settings(**sections))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Cats are dark and silent, dogs are bright and loud."""
    root = tmp_path_factory.mktemp("videos")
    loud = np.sin(np.arange(RATE) / 3).astype(np.float32)
    for split, videos in (("train", 4), ("validation", 1)):
        for name, level, sound in (("cat", 20, None), ("dog", 220, loud)):
            (root / split / name).mkdir(parents=True)
            for i in range(videos):
                video = np.full((8, 3, 16, 24), level + i, np.uint8)
                write_clip(root / split / name / f"{i}.mp4", Clip(video, sound), 8, RATE)
    (root / "train" / "cat" / "about.txt").write_text("no video")
    return root


def in_folder(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"folder": str(folder), "frames_per_second": 8, "threads": 2, **fields}


def folder_config(folder: Path, **fields: Any) -> Any:
    values = settings(**fields)
    return read_config(values | {"data": in_folder(folder)})


def test_clips_of_a_folder_have_its_classes(folder) -> None:
    run = folder_config(folder)
    examples = ClipExamples(VideoFolder(folder, "train", run.clip_shape), run, training=True)
    assert len(examples) == 8
    batch = examples.batch(np.array([1, 6]), np.array([10, 11])).tensors
    assert batch["label"].tolist() == [0, 1]
    assert batch["video"].shape == (2, 4, 3, 8, 8) and batch["video"].dtype == torch.uint8
    assert batch["video"][0].float().mean() < 40 and batch["video"][1].float().mean() > 200
    assert batch["audio"].shape == (2, 4000)
    assert not batch["audio"][0].any() and batch["audio"][1].abs().max() > 0.8
    assert examples.describe(6) == f"{folder}/train/dog/2.mp4, dog"


def test_videos_without_folders_of_classes_have_no_class(folder) -> None:
    run = folder_config(folder)
    clips = VideoFolder(folder / "train", "dog", run.clip_shape)
    assert clips.classes == () and clips.labels.tolist() == [-1] * 4
    examples = ClipExamples(clips, run, training=False)
    with torch.no_grad():
        output = open_task(run).build().eval()(examples.batch(np.array([0, 1]), np.array([-1, -2])))
    assert output.measures.keys() == {"video_psnr", "audio_psnr"}
    assert torch.isfinite(output.losses).all()


def test_draws_follow_the_sample_alone() -> None:
    run = config(masking={"video": 0.3, "audio": 0.4, "label": 0.5})
    examples = ClipExamples(SyntheticClips(0, 16, run.clip_shape), run, training=True)
    samples = np.arange(400)
    together = examples.batch(samples % 16, samples).tensors
    alone = examples.batch(np.array([5]), np.array([21])).tensors
    for name, values in together.items():
        assert torch.equal(values[21], alone[name][0])
    video, audio, label = together["hidden"].T
    assert not (video & audio).any()
    assert video.float().mean() == pytest.approx(0.3, abs=0.07)
    assert audio.float().mean() == pytest.approx(0.4, abs=0.07)
    assert label.float().mean() == pytest.approx(0.5, abs=0.07)
    assert together["video_points"].shape == (400, 5) and together["video_points"].max() < 256
    assert together["audio_points"].shape == (400, 3) and together["audio_points"].max() < 40
    later = examples.batch(np.array([5]), np.array([37])).tensors
    assert not torch.equal(later["video_points"], alone["video_points"])
    assert torch.equal(later["video"], alone["video"])


def test_validation_hides_the_class_and_draws_nothing() -> None:
    run = config()
    examples = ClipExamples(SyntheticClips(16, 8, run.clip_shape), run, training=False)
    batch = examples.batch(np.arange(8), -1 - np.arange(8)).tensors
    assert batch.keys() == {"video", "audio", "label", "hidden"}
    assert batch["hidden"].tolist() == [[False, False, True]] * 8


def test_synthetic_clips_tell_their_class() -> None:
    shape = config().clip_shape
    clips = SyntheticClips(0, 256, shape)
    assert set(clips.labels) == set(range(8)) == set(clips.labels[::4])
    for number in range(16):
        clip, label = clips.clip(number, 0.5), clips.labels[number]
        spectrum = np.abs(np.fft.rfft(clip.audio))
        tone = 220 * 1.5 ** (label // 2)
        assert abs(spectrum.argmax() * RATE / 4000 - tone) < 8
        moves = np.ptp(_centres(clip.video), axis=0)
        assert CLASSES[label].endswith("down" if moves[0] > moves[1] else "across")
    assert np.array_equal(clips.clip(9, 0).video, SyntheticClips(8, 8, shape).clip(1, 1).video)
    assert not np.array_equal(clips.clip(9, 0).video, clips.clip(1, 0).video)


def _centres(video: np.ndarray) -> np.ndarray:
    """(frames, 2): rows and columns, weighted by how far a pixel is from the background."""
    weight = np.abs(video.astype(float) - np.median(video, axis=(2, 3), keepdims=True)).sum(1)
    rows, columns = np.mgrid[:8, :8]
    return np.stack([(weight * axis).sum((1, 2)) for axis in (rows, columns)], 1) / weight.sum((1, 2))[:, None]


def test_loss_of_all_points_is_that_of_the_whole_clip() -> None:
    run = config()
    examples = ClipExamples(SyntheticClips(0, 8, run.clip_shape), run, training=False)
    torch.manual_seed(0)
    objective = open_task(run).build()
    whole = examples.batch(np.arange(3), -1 - np.arange(3))
    every = {"video_points": torch.arange(256).expand(3, -1), "audio_points": torch.arange(40).expand(3, -1)}
    points = type(whole)(whole.tensors | every, whole.counts, whole.indices)
    with torch.no_grad():
        validated = objective(whole)
    trained = objective(points)
    torch.testing.assert_close(trained.losses, validated.losses)
    assert trained.measures == {} and trained.loss_sum.requires_grad
    assert validated.measures.keys() == {"video_psnr", "audio_psnr", "accuracy"}


def test_parts_of_the_loss_weigh_as_configured() -> None:
    run = config()
    examples = ClipExamples(SyntheticClips(0, 8, run.clip_shape), run, training=False)
    torch.manual_seed(0)
    model = open_task(run).build().model
    batch = examples.batch(np.arange(4), -1 - np.arange(4))
    with torch.no_grad():

        def loss(video: float, audio: float, label: float) -> torch.Tensor:
            weights = LossSection(video=video, audio=audio, label=label)
            return MultimodalObjective(model, weights)(batch).losses[:, 0]

        made = model.reconstruct(model.encode(batch.tensors["video"] / 255, batch.tensors["audio"]))
        error = (made.video - batch.tensors["video"] / 255).abs().mean((1, 2, 3, 4))
        torch.testing.assert_close(loss(1, 0, 0), error)
        torch.testing.assert_close(loss(2, 3, 4), 2 * error + 3 * loss(0, 1, 0) + 4 * loss(0, 0, 1))


def test_errors_are_squared_where_asked() -> None:
    run = config()
    examples = ClipExamples(SyntheticClips(0, 8, run.clip_shape), run, training=False)
    model = open_task(run).build().model
    batch = examples.batch(np.arange(4), -1 - np.arange(4))
    with torch.no_grad():
        squared = MultimodalObjective(model, LossSection(error="squared", video=1, audio=0, label=0))(batch)
        made = model.reconstruct(model.encode(batch.tensors["video"] / 255, batch.tensors["audio"]))
    errors = (made.video - batch.tensors["video"] / 255).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(squared.losses[:, 0], errors)


def test_a_checkpoint_knows_what_classes_are_called(folder) -> None:
    run = folder_config(folder)
    train, validation = (VideoFolder(folder, split, run.clip_shape) for split in ("train", "validation"))
    assert ClipData(run, train, validation).describe()["labels"] == ["cat", "dog"]
    unnamed = VideoFolder(folder / "train", "dog", run.clip_shape)
    assert "labels" not in ClipData(run, unnamed, unnamed).describe()


@pytest.mark.parametrize(
    "sections, named",
    [
        ({"data": {"frames_per_second": 7.3333}}, "data.frames_per_second"),
        ({"data": {"folder": "videos"}}, "exactly one of data.folder and data.synthetic"),
        ({"masking": {"video": 0.6, "audio": 0.5}}, "never are both hidden"),
        ({"model": {"video_patch": [3, 4, 4]}}, "model.video_shape"),
        ({"model": {"video_shape": [4, 8]}}, "model.video_shape"),
        ({"loss": {"pixel": 5}}, "loss.pixel: unknown key, did you mean loss.pixels"),
    ],
)
def test_impossible_settings_are_refused(sections: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        config(**sections)


def test_folders_that_do_not_fit_are_refused(folder, tmp_path) -> None:
    assert list(open_task(folder_config(folder)).problems(1)) == []
    [doubt] = open_task(folder_config(folder)).doubts()
    assert doubt == "model.num_classes: 8, of which the data has 2"
    few = folder_config(folder, model={"num_classes": 1}, train={"global_batch": 12})
    problems = list(open_task(few).problems(1))
    assert problems[0] == "model.num_classes: 1 is too small, the data has 2"
    assert "more than the 8 training clips" in problems[1]
    (tmp_path / "train" / "horse").mkdir(parents=True)
    [problem] = open_task(folder_config(tmp_path)).problems(1)
    assert problem.startswith(f"data.folder: {tmp_path}/train/horse holds no videos (.avi")
    [problem] = open_task(folder_config(tmp_path / "train")).problems(1)
    assert problem.startswith(f"data.folder: {tmp_path}/train/train is no folder")


def test_a_damaged_video_is_named(folder, tmp_path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.mp4").write_bytes((folder / "train" / "dog" / "0.mp4").read_bytes()[:900])
    run = folder_config(folder)
    examples = ClipExamples(VideoFolder(tmp_path, "train", run.clip_shape), run, training=True)
    with pytest.raises(InputError, match=r"train/a\.mp4: is no video, or a damaged one"):
        examples.batch(np.array([0]), np.array([0]))


@pytest.mark.slow
def test_a_run_trains_validates_and_starts_another(folder, tmp_path, start_ranks, finish_ranks) -> None:
    first = settings(run={"dir": str(tmp_path / "first")}) | {"data": in_folder(folder)}
    (tmp_path / "first.yaml").write_text(json.dumps(first))
    second = {name: value for name, value in first.items() if name != "model"} | {
        "run": {"dir": str(tmp_path / "second")},
        "model": {"init_from": str(tmp_path / "first")},
    }
    (tmp_path / "second.yaml").write_text(json.dumps(second))
    finish_ranks(start_ranks([WORKER, tmp_path / "first.yaml"], 2))
    finish_ranks(start_ranks([WORKER, tmp_path / "second.yaml"], 1))
    records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if "video_psnr" in record]
    assert validated and {"loss", "audio_psnr", "accuracy"} <= validated[-1].keys()


def test_ready_configurations_are_sound() -> None:
    for path in sorted((ROOT / "configs").glob("multimodal_*.yaml")):
        assert load_config(path).task == "multimodal"
