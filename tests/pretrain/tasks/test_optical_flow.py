"""Training optical flow: examples as the model sees them, measures, and runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.processors.flow.estimation import estimate_flow
from perceiver_ar.processors.flow.features import FLOW_SCALE, frame_patches
from perceiver_ar.processors.flow.flo import write_flo
from perceiver_ar.processors.flow.tiles import Tiling
from pretrain.config import load_config
from pretrain.errors import InputError
from pretrain.preflight import check_run
from pretrain.tasks import open_task
from pretrain.tasks.optical_flow.examples import open_examples
from pretrain.tasks.optical_flow.objective import OpticalFlowObjective, flow_measures

HEIGHT, WIDTH = 16, 20
ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).parents[1] / "train_worker.py"


def write_config(folder: Path, **fields: Any) -> Path:
    """A small run on generated pairs; ``data__train={...}`` puts a value in the place of `data.train`."""
    model = {
        "image_shape": [HEIGHT, WIDTH],
        "num_feature_channels": 8,
        "num_frequency_bands": 2,
        "encoder": {"num_latents": 4, "latent_channels": 8, "num_blocks": 1, "layers_per_block": 1},
    }
    config: dict[str, Any] = {
        "task": "optical_flow",
        "run": {"dir": str(folder / "run")},
        "model": model,
        "data": {"train": {"kind": "generated", "scenes": 64, "motion": {"max_shift": 3}}, "threads": 2},
        "train": {"steps": 2, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
        "evaluation": {"examples": 4},
    }
    for name, value in fields.items():
        *groups, last = name.split("__")
        group = config
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "config.yaml"


def write_chairs(folder: Path, pairs: int, shape: tuple[int, int] = (HEIGHT + 4, WIDTH + 6), first: int = 0) -> Path:
    """Pairs of noise in which everything moves by whole pixels, three right and one down."""
    folder.mkdir(exist_ok=True)
    for number in range(first, first + pairs):
        noise = np.random.default_rng(number).integers(0, 256, (shape[0] + 1, shape[1] + 3, 3), np.uint8)
        Image.fromarray(noise[1:, 3:]).save(folder / f"{number:03d}_img1.png")
        Image.fromarray(noise[:-1, :-3]).save(folder / f"{number:03d}_img2.png")
        write_flo(folder / f"{number:03d}_flow.flo", np.broadcast_to(np.float32([3, 1]), (*shape, 2)))
    return folder


def moved_exactly(frames: np.ndarray, flow: np.ndarray) -> bool:
    """Whether the second frame shows, a whole number of pixels away, what the first one does."""
    right, down = map(round, flow.reshape(-1, 2).mean(axis=0).tolist())
    height, width = flow.shape[:2]
    rows = slice(max(0, -down), height - max(0, down)), slice(max(0, down), height - max(0, -down))
    columns = slice(max(0, -right), width - max(0, right)), slice(max(0, right), width - max(0, -right))
    return bool((frames[0][rows[0], columns[0]] == frames[1][rows[1], columns[1]]).all())


def numbers_of(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_batches_are_functions_of_their_numbers_and_samples_alone(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, augmentation={"brightness": 0.5, "noise": 9, "flip": True}))
    train_examples, validation = open_examples(config)
    whole = train_examples.batch(numbers_of(3, 5, 3), numbers_of(10, 11, 12))
    again, _ = open_examples(config)
    part = again.batch(numbers_of(5), numbers_of(11))
    for name, tensor in part.tensors.items():
        assert torch.equal(tensor[0], whole.tensors[name][1]), name
    frames = whole.tensors["frames"]
    assert not torch.equal(frames[0], frames[2])  # one scene, augmented differently
    assert whole.tensors["flow"].shape == (3, 2, HEIGHT, WIDTH, 2)
    assert whole.counts.tolist() == [2 * HEIGHT * WIDTH] * 3 and whole.indices.tolist() == [10, 11, 12]
    held_out = validation.batch(numbers_of(3, 3), numbers_of(-4, -4))
    assert torch.equal(held_out.tensors["frames"][0], held_out.tensors["frames"][1])
    assert not torch.equal(held_out.tensors["frames"][0], frames[0])


def test_nothing_is_augmented_in_the_first_phase(tmp_path: Path) -> None:
    phases = {"from_step": 10, "ramp_steps": 9, "brightness": 0.5, "max_zoom": 2.0}
    (plain, _), (phased, _) = (
        open_examples(load_config(write_config(tmp_path, augmentation=section))) for section in ({}, phases)
    )

    def change(step: int) -> float:
        number, samples = numbers_of(0, 1, 2, 3), 4 * step + numbers_of(0, 1, 2, 3)
        pair = [examples.batch(number, samples).tensors["frames"].float() for examples in (plain, phased)]
        return float((pair[0] - pair[1]).abs().mean())

    assert change(0) == change(9) == 0
    assert 0 < change(10) < change(19)


@pytest.mark.parametrize("augmentation", [{}, {"flip": True}])
def test_stored_pairs_are_cut_and_mirrored_with_their_flow(tmp_path: Path, augmentation: dict[str, Any]) -> None:
    pairs = {"kind": "chairs", "dir": str(write_chairs(tmp_path / "chairs", 8))}
    config = load_config(write_config(tmp_path, data__train=pairs, data__held_out=0.25, augmentation=augmentation))
    examples, validation = open_examples(config)
    assert (len(examples), len(validation)) == (6, 2)
    assert not {examples.describe(n) for n in range(6)} & {validation.describe(n) for n in range(2)}
    seen = set()
    for sample in range(24):
        tensors = examples.batch(numbers_of(sample % 6), numbers_of(sample)).tensors
        frames, flow = tensors["frames"][0].numpy(), tensors["flow"][0, 0].numpy()
        assert frames.shape == (2, HEIGHT, WIDTH, 3) and moved_exactly(frames, flow)
        seen.add(tuple(flow[0, 0].tolist()))
    assert seen == ({(a * 3.0, b * 1.0) for a in (1, -1) for b in (1, -1)} if augmentation else {(3.0, 1.0)})


def test_what_is_enlarged_moves_further(tmp_path: Path) -> None:
    pairs = {"kind": "chairs", "dir": str(write_chairs(tmp_path / "chairs", 4, shape=(64, 80)))}
    config = load_config(write_config(tmp_path, data__train=pairs, augmentation={"max_zoom": 2.0}))
    examples, _ = open_examples(config)
    flow = examples.batch(np.zeros(32, np.int64), np.arange(32)).tensors["flow"][:, 0]
    scales = flow[:, 0, 0, 1]
    assert torch.equal(flow, (scales[:, None] * torch.tensor([3.0, 1.0]))[:, None, None].expand_as(flow))
    assert 0.5 <= scales.min() < 0.7 and 1.5 < scales.max() <= 2


def test_measures_are_those_of_the_benchmarks() -> None:
    flow = torch.tensor([[[3.0, 4.0], [60.0, 80.0], [0.0, 0.0], [9.0, 9.0]]])
    errors = torch.tensor([[2.0, 4.0, 6.0, 0.0]])  # 4 of 100 pixels is within 5 %
    valid, occluded = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False, False, True]])
    measures = flow_measures(errors, flow, valid, occluded)
    sums = {name: float(values.sum()) for name, values in measures.items()}
    shares = {"over_1px": 3, "over_3px": 2, "over_5px": 1, "fl_all": 1}
    assert sums == pytest.approx(
        {"end_point_error": 12, "end_point_error_occluded": 2, **shares, "zero_flow_error": 105}
    )


def test_whole_frames_of_any_size_are_scored_as_they_are_shown(tmp_path: Path) -> None:
    folder = write_chairs(tmp_path / "chairs", 1, shape=(37, 53))
    write_chairs(folder, 1, shape=(10, 45), first=1)
    config = load_config(write_config(tmp_path, data__validation={"kind": "chairs", "dir": str(folder)}))
    torch.manual_seed(0)
    objective = OpticalFlowObjective(OpticalFlow(config.model.architecture)).eval()
    batch = open_examples(config)[1].batch(numbers_of(0, 1), numbers_of(-1, -2))
    assert batch.counts.tolist() == [37 * 53, 10 * 45] and batch.tensors["sizes"].tolist() == [[37, 53], [10, 45]]
    with torch.no_grad():
        output = objective(batch)
    for row, (height, width) in enumerate([(37, 53), (10, 45)]):
        pair = batch.tensors["frames"][row, :, :height, :width]
        tiling = Tiling((height, width), (HEIGHT, WIDTH))
        with torch.no_grad():
            [flow] = estimate_flow([pair], tiling, objective.model)
        errors = torch.linalg.vector_norm(flow - torch.tensor([3.0, 1.0]), dim=-1)
        torch.testing.assert_close(output.losses[row, 0], errors.sum())


def test_the_loss_is_the_error_in_pixels_in_both_directions(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    torch.manual_seed(0)
    objective = OpticalFlowObjective(OpticalFlow(config.model.architecture)).eval()
    batch = open_examples(config)[0].batch(numbers_of(0, 1), numbers_of(0, 1))
    batch.tensors["valid"][0, 0, :, :5] = False
    with torch.no_grad():
        output = objective(batch)
    for row in range(2):
        frames, flow, valid = (batch.tensors[name][row] for name in ("frames", "flow", "valid"))
        with torch.no_grad():
            there, back = (
                objective.model(frame_patches(pair)[None])[0] * FLOW_SCALE for pair in (frames, frames.flip(0))
            )
        errors = torch.linalg.vector_norm(torch.stack([there, back]) - flow, dim=-1)[valid]
        torch.testing.assert_close(output.losses[row, 0], errors.sum())
        torch.testing.assert_close(output.measures["end_point_error"][row, 0], errors.sum())
    torch.testing.assert_close(output.loss_sum, output.losses.sum())
    assert objective(batch).measures == {}


def test_the_published_recipe_sees_512_pairs_a_step_480_times_400_000_in_all() -> None:
    config = load_config(ROOT / "configs" / "flow_perceiver_io.yaml")
    task = open_task(config)
    assert task.step_targets() == 512 * 368 * 496
    assert config.train.steps * 512 == 480 * 400_000
    assert (config.optimizer.kind, config.optimizer.lr, config.schedule.kind) == ("lamb", 4e-4, "cosine")


@pytest.mark.slow
def test_a_run_trains_validates_and_goes_on(
    tmp_path: Path, start_ranks: Callable[..., Any], finish_ranks: Callable[..., str]
) -> None:
    pairs = {"kind": "chairs", "dir": str(write_chairs(tmp_path / "chairs", 8))}
    first = write_config(tmp_path, data__train=pairs).rename(tmp_path / "first.yaml")
    finish_ranks(start_ranks([WORKER, first, write_config(tmp_path, data__train=pairs, train__steps=3)], 1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in scores] == [2, 3]
    assert scores[-1]["trained_pixels"] == 3 * 4 * HEIGHT * WIDTH
    assert scores[-1]["zero_flow_error"] == pytest.approx(10**0.5)
    assert scores[-1]["loss"] == scores[-1]["end_point_error"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data__train": {"kind": "middlebury", "dir": "x"}}, "data.train.kind: must be one of"),
        ({"data__train": {"kind": "kitti", "dir": "nowhere"}}, "nowhere: holds no pairs with known flow as kitti"),
        ({"data__train": {"kind": "generated", "pictures": "nowhere"}}, "nowhere: no such folder of pictures"),
        ({"data__train__scenes": 3}, "train.global_batch: 4 is more than the 3 training pairs"),
        ({"data__train__motion": {"max_zoom": 0.5}}, "data.train.motion.max_zoom: must be at least 1, not 0.5"),
        ({"model__num_patch_channels": 3}, "model.num_patch_channels must be 27, not 3"),
        ({"model__image_shape": [16, 16, 3]}, "model.image_shape"),
        (
            {"train__zero": {"stage": 3}, "data__validation": {"kind": "kitti", "dir": "x"}},
            "data: frames of different sizes are not scored under train.zero.stage 3",
        ),
        ({"data__held_out": 0}, "data.held_out: must be greater than 0, not 0"),
    ],
)
def test_bad_configurations_are_refused_in_a_line(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_run(load_config(write_config(tmp_path, **fields)), 1)
    assert problem in str(refusal.value) and "\n" not in str(refusal.value)


def test_frames_smaller_than_the_models_are_refused_by_name(tmp_path: Path) -> None:
    pairs = {"kind": "chairs", "dir": str(write_chairs(tmp_path / "chairs", 4, shape=(HEIGHT, WIDTH - 1)))}
    with pytest.raises(InputError, match=r"img1\.png: 19 x 16 pixels are less than the model's 20 x 16"):
        check_run(load_config(write_config(tmp_path, data__train=pairs)), 1)


def test_pictures_are_held_out_whole(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 50), (50 * number, 0, 0)).save(pictures / f"{number}.png")
    source = {"kind": "generated", "pictures": str(pictures), "scenes": 32}
    examples, validation = open_examples(load_config(write_config(tmp_path, data__train=source)))
    reds = [
        set(part.batch(np.arange(24), np.arange(24)).tensors["frames"][..., 0].unique().tolist())
        for part in (examples, validation)
    ]
    assert len(reds[1]) == 1 and not reds[0] & reds[1]  # one picture of five, at least
    (pictures / "0.png").write_bytes(b"damaged")
    examples, _ = open_examples(load_config(write_config(tmp_path, data__train=source)))
    with pytest.raises(InputError, match=r"0\.png: is no picture that can be read"):
        examples.batch(np.arange(24), np.arange(24))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_tiny_model_learns_to_see_motion(
    tmp_path: Path, start_ranks: Callable[..., Any], finish_ranks: Callable[..., str]
) -> None:
    command = ["pretrain/train.py", "--config", "configs/flow_tiny.yaml", f"run.dir={tmp_path / 'run'}"]
    finish_ranks(start_ranks(command, 1), timeout=3500)
    scores = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert scores["end_point_error"] < 0.5 * scores["zero_flow_error"]
