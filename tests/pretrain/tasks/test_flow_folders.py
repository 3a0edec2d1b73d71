"""Sintel, KITTI and FlyingChairs as they lie in their folders."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceiver_ar.processors.flow.flo import write_flo
from pretrain.errors import InputError
from pretrain.tasks.optical_flow.config import ChairsPairs, KittiPairs, SintelPairs
from pretrain.tasks.optical_flow.folders import find_pairs

SHAPE = (6, 9)
RANDOM = np.random.default_rng(0)
FLOW = (RANDOM.integers(-6400, 6400, (*SHAPE, 2)) / 64).astype(np.float32)
MASK = RANDOM.random(SHAPE) < 0.5


def write_image(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def frame(value: int) -> np.ndarray:
    return np.full((*SHAPE, 3), value, np.uint8)


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """By the PNG specification: 16 bits, big-endian, of three colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.concatenate([flow * 64 + 2**15, valid[..., None]], axis=-1).astype(">u2")
    header = struct.pack(">IIBBBBB", flow.shape[1], flow.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    )


def write_sintel(folder: Path) -> SintelPairs:
    root = folder / "training"
    for number in (1, 2, 3):
        for name, value in (("clean", 10), ("final", 20)):
            write_image(root / name / "alley_1" / f"frame_{number:04d}.png", frame(value + number))
    for number in (1, 2):
        flow = root / "flow" / "alley_1" / f"frame_{number:04d}.flo"
        flow.parent.mkdir(parents=True, exist_ok=True)
        write_flo(flow, FLOW + number)
    write_image(root / "occlusions" / "alley_1" / "frame_0001.png", MASK.astype(np.uint8) * 255)
    write_image(root / "invalid" / "alley_1" / "frame_0001.png", ~MASK * np.uint8(255))
    return SintelPairs(kind="sintel", dir=folder)


def write_kitti(folder: Path) -> KittiPairs:
    root = folder / "training"
    for number in (10, 11):
        write_image(root / "image_2" / f"000000_{number}.png", frame(number))
    write_kitti_flow(root / "flow_occ" / "000000_10.png", FLOW, MASK)
    visible = MASK.copy()
    visible[:3] = False
    write_kitti_flow(root / "flow_noc" / "000000_10.png", FLOW, visible)
    return KittiPairs(kind="kitti", dir=folder)


def test_sintel(tmp_path: Path) -> None:
    found = find_pairs(write_sintel(tmp_path))
    assert [pair.first.parts[-3:] for pair in found] == [
        (name, "alley_1", f"frame_{number:04d}.png") for number in (1, 2) for name in ("clean", "final")
    ]
    pair = found[1].read()
    assert pair.frames[:, 0, 0, 0].tolist() == [21, 22]
    np.testing.assert_array_equal(pair.valid[0], MASK)
    np.testing.assert_array_equal(pair.occluded[0], MASK)
    np.testing.assert_array_equal(pair.flow[0][MASK], (FLOW + 1)[MASK])
    assert found[2].read().valid.all() and not found[2].read().occluded.any()
    assert len(find_pairs(SintelPairs(kind="sintel", dir=tmp_path, passes=("final",)))) == 2


def test_kitti(tmp_path: Path) -> None:
    [stored] = find_pairs(write_kitti(tmp_path))
    pair = stored.read()
    assert pair.frames[:, 0, 0, 0].tolist() == [10, 11]
    np.testing.assert_array_equal(pair.valid[0], MASK)
    np.testing.assert_array_equal(pair.flow[0], np.where(MASK[..., None], FLOW, 0))
    np.testing.assert_array_equal(pair.occluded[0], MASK & (np.arange(6) < 3)[:, None])


def test_chairs_and_flow_that_is_not_known(tmp_path: Path) -> None:
    write_image(tmp_path / "a_b_img1.ppm", frame(1))
    write_image(tmp_path / "a_b_img2.ppm", frame(2))
    flow = FLOW.copy()
    flow[0, 0, 1] = 1.7e9
    write_flo(tmp_path / "a_b_flow.flo", flow)
    [stored] = find_pairs(ChairsPairs(kind="chairs", dir=tmp_path))
    pair = stored.read()
    assert pair.frames[:, 0, 0, 0].tolist() == [1, 2]
    assert pair.valid.sum() == pair.valid.size - 1 and not pair.valid[0, 0, 0] and not pair.flow[0, 0, 0].any()


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("image_2/000000_11.png", None, "000000_11.png: no such file"),
        ("image_2/000000_11.png", b"\x89PNG", "000000_11.png: is no image that can be read"),
        ("flow_occ/000000_10.png", b"\x89PNG\r\n\x1a\nmore", "000000_10.png: is no PNG file that can be read"),
        ("flow_occ/000000_10.png", "image_2/000000_10.png", "is rgb24, KITTI's flow is PNG of 16 bits"),
        ("flow_noc/000000_10.png", b"", "000000_10.png: is no PNG file that can be read"),
    ],
)
def test_damage_is_told_by_file(tmp_path: Path, file: str, content: bytes | str | None, problem: str) -> None:
    [stored] = find_pairs(write_kitti(tmp_path))
    path = tmp_path / "training" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else (path.parents[1] / content).read_bytes())
    with pytest.raises(InputError) as refusal:
        stored.read()
    assert problem in str(refusal.value) and "\n" not in str(refusal.value)


def test_frames_and_flow_of_different_sizes_are_refused(tmp_path: Path) -> None:
    [stored] = find_pairs(write_kitti(tmp_path))
    write_image(stored.second, np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(InputError, match="must be of one size, they are 8 x 6 and 9 x 6"):
        stored.read()
