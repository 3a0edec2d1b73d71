"""Images from files and arrays to what a classifier reads; transformers' Perceiver image processor is the oracle."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_ar.processors.image import Box, central_box, crop_and_resize, decode_image, image_tensor, preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colours with an edge, as resizing is to be compared on what images are like."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 60 * np.sin(x / (7 + 3 * c)) + 60 * np.cos(y / (9 + c)) for c in range(channels)]
    image = np.stack(waves, axis=-1).astype(np.uint8)
    image[height // 3 : height // 2, width // 4 : width // 2] = 255
    return image


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(300, 400), (256, 256), (97, 61)])
def test_transformers_processor_gives_the_same_pixels(size):
    processor_class = pytest.importorskip(
        "transformers.models.perceiver.image_processing_pil_perceiver"
    ).PerceiverImageProcessorPil
    image = photo(*size)
    processor = processor_class(size={"height": 32, "width": 32}, crop_size={"height": 40, "width": 40})
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]

    ours = preprocess(image_tensor(image, 3), shape=(32, 32), crop_fraction=32 / 40, mean=MEAN, std=STD)

    levels = (ours - expected) * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.abs().max() <= 1.01  # both round to a byte between the two passes of resizing
    assert levels.abs().mean() < 0.3


def test_the_crop_is_central_and_of_the_shape_wanted():
    assert central_box((300, 400), (224, 224), 0.875) == Box(19, 69, 262, 262)
    assert central_box((100, 100), (50, 100), 1.0) == Box(25, 0, 50, 100)
    assert central_box((1, 5), (28, 28), 0.1) == Box(0, 2, 1, 1)
    pixels = torch.arange(24, dtype=torch.uint8).view(1, 4, 6)
    assert torch.equal(crop_and_resize(pixels, Box(1, 2, 2, 3), (2, 3)), pixels[:, 1:3, 2:5])


def test_files_of_any_mode_become_the_channels_asked_for():
    colour = Image.fromarray(photo(20, 30))
    assert torch.equal(decode_image(encoded(colour), 3), torch.from_numpy(np.array(colour)).permute(2, 0, 1))
    gray = decode_image(encoded(colour.convert("L")), 3)
    assert gray.shape == (3, 20, 30) and torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2])
    for mode, channels in [("RGBA", 3), ("P", 3), ("CMYK", 3), ("1", 1), ("RGB", 1), ("RGB", 4)]:
        format = "TIFF" if mode == "CMYK" else "PNG"
        assert decode_image(encoded(colour.convert(mode), format=format), channels).shape == (channels, 20, 30)


def test_sixteen_bits_are_scaled_to_eight():
    levels = np.array([[0, 256, 65535]], dtype=np.uint16)
    for format in ("PNG", "PPM", "TIFF"):
        assert decode_image(encoded(Image.fromarray(levels), format=format), 1).flatten().tolist() == [0, 1, 255]


def test_a_photograph_taken_on_its_side_is_turned():
    image = Image.fromarray(photo(20, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn clockwise
    assert decode_image(encoded(image, exif=exif), 3).shape == (3, 30, 20)


def test_what_is_no_image_says_so(tmp_path):
    whole = encoded(Image.fromarray(photo(64, 64)))
    with pytest.raises(ValueError, match="not an image that can be decoded"):
        decode_image(whole[: len(whole) // 2], 3)
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(ValueError, match="no known image format"):
        decode_image(tmp_path / "note.png", 3)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8, 4), np.uint8), "has 4 channels, the model reads 3"),
        (np.zeros((8, 8), np.uint8), "has 1 channels, the model reads 3"),
        (np.zeros((8, 8, 3), np.float32), "must be bytes"),
        (np.zeros((2, 8, 8, 3), np.uint8), "three axes"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), "has 4 channels"),
    ],
)
def test_arrays_of_another_kind_are_refused(image, reason):
    with pytest.raises(ValueError, match=reason):
        image_tensor(image, 3)


def test_names_and_channels_that_no_image_has_are_refused():
    with pytest.raises(ValueError, match="must be Pillow's, an array or a tensor, not str"):
        image_tensor("a.png", 3)
    with pytest.raises(ValueError, match="a Pillow image has 1, 3 or 4 channels, the model reads 2"):
        image_tensor(Image.new("RGB", (8, 8)), 2)
