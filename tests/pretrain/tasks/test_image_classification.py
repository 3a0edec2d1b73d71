import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.processors.image import preprocess
from pretrain.config import load_config, read_config
from pretrain.errors import InputError
from pretrain.progress import Progress
from pretrain.tasks import open_task
from pretrain.tasks.examples import sample_generator
from pretrain.tasks.image_classification.augmentation import augment, mix_pairs, random_box
from pretrain.tasks.image_classification.config import AugmentationSection
from pretrain.tasks.image_classification.objective import ImageClassificationObjective
from pretrain.tasks.image_classification.rand_augment import OPERATIONS, affine, rand_augment

ROOT = Path(__file__).parents[3]
ENCODER = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1, "layers_per_block": 1}
MODEL = {"image_shape": [8, 8], "num_image_channels": 3, "num_classes": 2, "num_frequency_bands": 2, "encoder": ENCODER}
ALL = {
    "crop_area": [0.3, 1.0],
    "flip": True,
    "rotate": 10,
    "zoom": 0.1,
    "shear": 0.1,
    "translate": 0.1,
    "rand_augment": {"operations": 2, "magnitude": 5},
    "mixup": 0.2,
    "cutmix": 1.0,
}


class Alone:
    """The one rank of a run, or one among others."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size, self.device = rank, size, torch.device("cpu")

    def together(self, action):
        return action()

    def sum_(self, tensor):
        assert self.size == 1


def noise(seed, height=10, width=12):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cats are dark, dogs are bright; sizes differ, and one is gray."""
    root = tmp_path_factory.mktemp("images")
    for split, images in (("train", 6), ("validation", 3)):
        for name, level in (("cat", 0), ("dog", 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                image = Image.fromarray(noise(i, 10 + i, 12) // 2 + 127 * level)
                (image.convert("L") if i == 0 else image).save(root / split / name / f"{i}.png")
    (root / "train" / "cat" / "about.txt").write_text("no image")
    return root


def config(folder, **sections):
    run = {
        "task": "image_classification",
        "run": {"dir": "unused", "seed": 3},
        "model": MODEL,
        "data": {"folder": str(folder), "threads": 2},
        "train": {"steps": 6, "global_batch": 4, "micro_batch": 4, "precision": "fp32"},
    }
    return read_config(run | {name: run.get(name, {}) | fields for name, fields in sections.items()})


def batches(config, rank=0, size=1):
    data = open_task(config).open_data(Alone(rank, size))
    with data.reader(Alone(rank, size), Progress(step=0)) as reader:
        return [batch for step in reader for batch in step.micro_batches]


def joined(batches, name):
    return torch.cat([batch.tensors[name] for batch in batches])


def test_an_epoch_holds_each_image_once_with_its_label(folder):
    read = batches(config(folder, train={"steps": 3}))
    images, labels = joined(read, "images"), joined(read, "labels")[:, 0]
    assert images.shape == (12, 3, 8, 8) and labels.bincount().tolist() == [6, 6]
    # normalised with 0.5 and 0.5, black is -1 and white is 1
    assert torch.equal((images.mean(dim=(1, 2, 3)) > 0).long(), labels)
    assert torch.equal(joined(read, "shares"), torch.ones(12))


def test_validation_is_what_the_processor_gives(folder):
    whole = config(folder, augmentation=ALL, data={"crop_fraction": 0.8, "mean": [0.4, 0.5, 0.6], "std": [0.2]})
    seen = []

    def score(batch):
        seen.append(batch)
        return ImageClassificationObjective(ImageClassifier(whole.model.architecture), 0.0)(batch)

    with torch.no_grad():
        record = open_task(whole).open_data(Alone()).validate(score, Alone(), step=0)
    assert record.keys() == {"loss", "accuracy"}
    pixels = torch.from_numpy(noise(2, 12, 12) // 2 + 127).permute(2, 0, 1)  # validation/dog/2.png
    expected = preprocess(pixels, shape=(8, 8), crop_fraction=0.8, mean=[0.4, 0.5, 0.6], std=[0.2])
    torch.testing.assert_close(joined(seen, "images")[5], expected)


def test_batches_do_not_depend_on_ranks_and_micro_batches(folder):
    one = batches(config(folder, augmentation=ALL))
    again = [config(folder, augmentation=ALL, train={"micro_batch": 2}) for _ in range(2)]
    ranks = [batches(run, rank, 2) for rank, run in enumerate(again)]
    for name in ("images", "labels", "shares"):
        two = torch.cat([joined(pair, name) for pair in zip(*ranks, strict=True)])
        assert torch.equal(joined(one, name), two), name
    # the second epoch augments the same images otherwise
    assert not torch.equal(joined(one[:3], "images").sort(0).values, joined(one[3:], "images").sort(0).values)


def test_mixing_shares_images_as_it_shares_labels():
    # of constant images, any pixel and any area tell the share
    levels = torch.tensor([0.0, 1.0, 0.0, 1.0])
    images = levels.view(4, 1, 1, 1).expand(4, 1, 16, 16)
    for settings in ({"mixup": 0.4}, {"cutmix": 1.0}):
        generators = [sample_generator(0, sample) for sample in range(4)]
        mixed, labels, shares = mix_pairs(images, torch.arange(4), AugmentationSection(**settings), generators)
        assert labels.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
        expected = shares * levels + (1 - shares) * levels[[1, 0, 3, 2]]
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected)
        assert ((shares >= 0) & (shares <= 1)).all() and len(shares.unique()) == 4
        assert (mixed.flatten(1).std(dim=1) == 0).all() == ("mixup" in settings)


def test_the_loss_of_mixed_and_smoothed_labels_is_that_of_their_distribution(folder):
    [batch, *_] = batches(config(folder, augmentation=ALL))
    torch.manual_seed(0)
    objective = ImageClassificationObjective(ImageClassifier(config(folder).model.architecture), 0.1)
    logits = objective.model(batch.tensors["images"])
    own, other = F.one_hot(batch.tensors["labels"], 2).float().unbind(1)
    shares = batch.tensors["shares"][:, None]
    target = shares * own + (1 - shares) * other

    output = objective(batch)

    torch.testing.assert_close(output.losses[:, 0], F.cross_entropy(logits, target, reduction="none"))
    smoothed = F.cross_entropy(logits, 0.9 * target + 0.1 / 2, reduction="sum")
    torch.testing.assert_close(output.loss_sum, smoothed)
    assert output.measures == {}
    with torch.no_grad():
        output = objective.eval()(batch)
    torch.testing.assert_close(output.loss_sum, output.losses.sum())
    assert torch.equal(output.measures["accuracy"][:, 0], logits.argmax(1) == batch.tensors["labels"][:, 0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_rand_augment_operations_do_what_they_are_called(mode):
    image = Image.fromarray(noise(0, 16, 20)).convert(mode)
    random = sample_generator(0, 0)
    for operation in OPERATIONS:
        for strength in (0.0, 0.5, 1.0):
            changed = operation(image, strength, random)
            assert (changed.mode, changed.size) == (mode, image.size)
    strongest = [operation(image, 1.0, random) for operation in OPERATIONS]
    for number, expected in [(0, ImageOps.autocontrast(image)), (1, ImageOps.equalize(image))]:
        assert strongest[number] == expected
    assert strongest[2] == ImageOps.invert(image)
    assert strongest[4] == ImageOps.posterize(image, 4)
    for number in (3, 10, 11, 12, 13, 14):  # geometry, of no strength
        assert OPERATIONS[number](image, 0.0, random) == image
    assert np.asarray(strongest[14]).min() >= 0 and (np.asarray(strongest[14]) != np.asarray(image)).any()
    assert rand_augment(image, 3, 7, sample_generator(0, 1)) == rand_augment(image, 3, 7, sample_generator(0, 1))


def test_affine_moves_and_turns_about_the_middle():
    image = Image.fromarray(noise(0, 9, 9))
    pixels = np.asarray(image)
    moved = np.asarray(affine(image, np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), fill=7))
    np.testing.assert_array_equal(moved[:, :-2], pixels[:, 2:])
    assert (moved[:, -2:] == 7).all()
    turned = np.asarray(affine(image, np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]), fill=7))
    np.testing.assert_array_equal(turned, np.rot90(pixels))


def test_random_crops_have_the_area_and_aspect_asked_for():
    boxes = [random_box((120, 200), (32, 32), (0.1, 0.5), sample_generator(0, i)) for i in range(300)]
    areas = np.array([box.height * box.width for box in boxes]) / (120 * 200)
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.095 < areas.min() < 0.13 and 0.47 < areas.max() < 0.51
    assert aspects.min() > 0.73 and aspects.max() < 1.37
    assert all(box.top + box.height <= 120 and box.left + box.width <= 200 for box in boxes)
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    flipped = [augment(image, (4, 4), 1.0, AugmentationSection(flip=True), sample_generator(0, i)) for i in range(40)]
    mirrored = sum(torch.equal(one, image.flip(-1)) for one in flipped)
    assert 10 < mirrored < 30 and mirrored + sum(torch.equal(one, image) for one in flipped) == 40


def parquet(path, rows, **features):
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])} | features
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(path)


def test_a_data_set_of_images_is_read_like_a_folder(tmp_path, folder):
    for split, images in (("train", 6), ("validation", 3)):
        rows = [
            {"image": {"bytes": (folder / split / name / f"{i}.png").read_bytes()}, "label": label}
            for label, name in enumerate(("cat", "dog"))
            for i in range(images)
        ]
        parquet(tmp_path / f"{split}.parquet", rows)
    by_rows = config(folder, data={"folder": None, "dataset": str(tmp_path)})
    data = open_task(by_rows).open_data(Alone())
    assert data.describe()["labels"] == ["cat", "dog"]
    [of_rows], [of_files] = ([score_all(run)] for run in (by_rows, config(folder)))
    assert of_rows == of_files


def score_all(config):
    torch.manual_seed(0)
    objective = ImageClassificationObjective(ImageClassifier(config.model.architecture), 0.0).eval()
    with torch.no_grad():
        return open_task(config).open_data(Alone()).validate(objective, Alone(), step=0)


def problems(config):
    return list(open_task(config).problems(world_size=1))


def test_what_is_wrong_with_images_is_said_by_file_or_row(tmp_path, folder):
    assert problems(config(folder)) == []
    [problem] = problems(config(folder, model={"num_classes": 3}))
    assert problem == "model.num_classes: is 3, but there are 2 classes: cat, dog"
    [problem] = problems(config(folder, data={"validation": "test"}))
    assert problem == f"data.folder: {folder} has no split 'test'; there are train, validation"
    [problem] = problems(config(tmp_path / "none"))
    assert problem == f"data.folder: {tmp_path / 'none'} is no folder"
    [problem] = problems(config(folder, train={"global_batch": 16}))
    assert problem == "train.global_batch: 16 is more than the 12 training images"

    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes((folder / split / name / "1.png").read_bytes())
    small = config(tmp_path, train={"global_batch": 2, "micro_batch": 2})
    damaged = tmp_path / "train" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match=f"^{damaged}: is not an image that can be decoded"):
        batches(small)
    (tmp_path / "validation" / "bird").mkdir()
    [problem] = problems(small)
    assert problem.startswith(f"data.folder: {tmp_path / 'validation' / 'bird'} holds no images (.bmp, ")
    (tmp_path / "validation" / "bird" / "1.png").write_bytes(b"")
    [problem] = problems(small)
    assert problem == "data: class 'bird' is in one of train and validation only"


def test_what_is_wrong_with_a_data_set_is_said_by_column_or_row(tmp_path):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    Image.fromarray(noise(0)).save(buffer, format="PNG")
    image = {"bytes": buffer.getvalue()}
    for number, label in enumerate([1, 5]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for split in ("train", "validation"):
            rows = [{"image": image, "label": 0}, {"image": image, "label": label}] * 2
            parquet(folder / f"{split}.parquet", rows, label=datasets.Value("int64"))
    good, bad = ({"folder": None, "dataset": str(tmp_path / str(number))} for number in range(2))
    assert problems(config(tmp_path, data=good)) == []
    [problem] = problems(config(tmp_path, data=bad))
    assert problem == f"{tmp_path / '1'}, train, row 1: label 5 is no class, they are 0 to 1"
    [problem] = problems(config(tmp_path, data=good | {"image_column": "picture"}))
    assert problem == f"data.image_column: {tmp_path / '0'} has no column 'picture'; there are image, label"
    [problem] = problems(config(tmp_path, data=good | {"image_column": "label"}))
    assert problem == f"data.image_column: column 'label' of {tmp_path / '0'} holds no images"
    [problem] = problems(config(tmp_path, data=good | {"label_column": "image"}))
    assert problem.startswith(f"data.label_column: column 'image' of {tmp_path / '0'} must hold a whole number")
    [problem] = problems(config(tmp_path, data=good | {"train": "test"}))
    assert problem.startswith(f"data.dataset: cannot open split 'test' of {tmp_path / '0'}: ")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A classifier of two classes, and the folder it lies in."""
    hf = pytest.importorskip("perceiver_ar.hf")
    architecture = config("unused", model={"image_shape": [8, 6]}).model.architecture
    torch.manual_seed(1)
    model = hf.PerceiverIOForImageClassification(
        hf.PerceiverIOForImageClassification.config_class.of(architecture, ["cat", "dog"])
    )
    folder = tmp_path_factory.mktemp("exported")
    model.save_pretrained(folder)
    return model.model, folder


@pytest.mark.parametrize("classes", [2, 3])
def test_a_run_starts_from_a_classifier_of_any_classes(tmp_path, exported, classes):
    model, location = exported
    run = {
        "task": "image_classification",
        "run": {"dir": str(tmp_path / "run")},
        "model": {"init_from": str(location), "num_classes": classes},
        "data": {"folder": "unused"},
        "train": {"steps": 6, "global_batch": 4, "micro_batch": 4},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    task = open_task(loaded := load_config(tmp_path / "run.yaml"))
    assert loaded.model.image_shape == (8, 6) and loaded.model.encoder == model.config.encoder
    assert [problem for problem in task.problems(1) if "init_from" in problem] == []

    new = task.build().model
    drawn = new.output.weight.clone()
    task.initialize(new)

    taken = [name for name in model.state_dict() if classes == 2 or not name.startswith("output")]
    assert all(torch.equal(new.state_dict()[name], model.state_dict()[name]) for name in taken)
    assert torch.equal(new.output.weight, drawn) == (classes == 3)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"model": {"image_shape": [8]}}, r"model.image_shape must be height and width, not \[8\]"),
        ({"model": {"num_image_channels": 2}}, r"num_image_channels must be 1 \(gray\) or 3 \(colour\), not 2"),
        ({"data": {"mean": [0.5, 0.5]}}, "mean must have 1 or 3 numbers"),
        ({"data": {"dataset": "mnist"}}, "give exactly one of data.folder and data.dataset"),
        ({"augmentation": {"cutmix": 1.0}, "train": {"micro_batch": 1}}, "train.micro_batch must be even, not 1"),
        ({"augmentation": {"crop_area": [1.0, 0.5]}}, "must be the least and the largest share"),
        ({"model": {"preset": "perceiver-io-flow"}}, "preset must be one of perceiver-imagenet, "),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, sections, problem):
    with pytest.raises(InputError, match=problem):
        config(folder, **sections)
