"""Published sets of pairs with measured or rendered flow, as they lie in their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perceiver_ar.processors.flow.flo import read_flo
from pretrain.errors import InputError
from pretrain.tasks.optical_flow.config import ChairsPairs, FolderPairs, KittiPairs, SintelPairs
from pretrain.tasks.optical_flow.pair import Pair

UNKNOWN = 1e9
"""Larger values in .flo files stand for flow that is not known."""
NAME = re.compile(r"(.+)_img1\.(?:ppm|png|jpg)")


@dataclass(frozen=True)
class StoredPair:
    group: str
    """What is held out together: frames of one film resemble each other."""
    first: Path
    second: Path
    flow: Path
    """A .flo file, or a .png as KITTI has them."""
    visible: Path | None = None
    """KITTI: the same flow, where the second frame shows it."""
    occluded: Path | None = None
    """Sintel: white where the second frame does not show it."""
    invalid: Path | None = None
    """Sintel: white where flow is not to be trusted."""

    def read(self) -> Pair:
        """Raises InputError where a file is missing or damaged, or the sizes do not go together."""
        frames = [_read_frame(path) for path in (self.first, self.second)]
        flow, valid = _read_flow(self.flow)
        occluded = np.zeros_like(valid)
        if self.visible is not None:
            occluded = valid & ~_read_flow(self.visible)[1]
        if self.occluded is not None:
            occluded = _read_mask(self.occluded)
        if self.invalid is not None:
            valid = valid & ~_read_mask(self.invalid)
        shapes = {values.shape[:2] for values in (*frames, flow, valid, occluded)}
        if len(shapes) > 1:
            sizes = " and ".join(sorted(f"{width} x {height}" for height, width in shapes))
            raise InputError(f"{self.flow}: flow, frames and masks must be of one size, they are {sizes}")
        return Pair(np.stack(frames), np.where(valid[..., None], flow, 0)[None], valid[None], occluded[None])


def find_pairs(section: FolderPairs) -> list[StoredPair]:
    """The pairs of a set with known flow, in a fixed order. Raises InputError where there are none."""
    found = list(_find(section))
    if not found:
        raise InputError(f"{section.dir}: holds no pairs with known flow as {section.kind} has them")
    return found


def _find(section: FolderPairs) -> Iterator[StoredPair]:
    match section:
        case SintelPairs():
            return _sintel(section)
        case KittiPairs():
            return _kitti(section)
        case ChairsPairs():
            return _chairs(section)


def _sintel(section: SintelPairs) -> Iterator[StoredPair]:
    root = section.dir / "training"
    for flow in sorted(root.glob("flow/*/frame_*.flo")):
        film, number = flow.parent.name, int(flow.stem.removeprefix("frame_"))
        occluded, invalid = (root / kind / film / f"{flow.stem}.png" for kind in ("occlusions", "invalid"))
        for name in section.passes:
            first, second = (root / name / film / f"frame_{frame:04d}.png" for frame in (number, number + 1))
            masks = (mask if mask.exists() else None for mask in (occluded, invalid))
            yield StoredPair(film, first, second, flow, None, *masks)


def _kitti(section: KittiPairs) -> Iterator[StoredPair]:
    root = section.dir / "training"
    for flow in sorted(root.glob("flow_occ/*_10.png")):
        name, visible = flow.stem.removesuffix("_10"), root / "flow_noc" / flow.name
        first, second = (root / "image_2" / f"{name}_{number}.png" for number in (10, 11))
        yield StoredPair(name, first, second, flow, visible if visible.exists() else None)


def _chairs(section: ChairsPairs) -> Iterator[StoredPair]:
    for first in sorted(section.dir.glob("*_img1.*")):
        if match := NAME.fullmatch(first.name):
            name = match.group(1)
            second, flow = section.dir / f"{name}_img2{first.suffix}", section.dir / f"{name}_flow.flo"
            yield StoredPair(name, first, second, flow)


def _read_frame(path: Path) -> np.ndarray:
    """(height, width, 3) uint8."""
    return _read_image(path, "RGB")


def _read_mask(path: Path) -> np.ndarray:
    """(height, width) bool."""
    return _read_image(path, "L") > 127


def _read_image(path: Path, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    # Pillow's decoders raise whatever the damage makes them stumble over.
    except Exception as error:
        raise InputError(f"{path}: is no image that can be read ({error})") from None


def _read_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Flow (height, width, 2) float32 in pixels, and where it is known (height, width) bool."""
    try:
        if path.suffix == ".png":
            return read_kitti_flow(path)
        flow = read_flo(path)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from None
    known: np.ndarray = np.all(np.abs(flow) < UNKNOWN, axis=-1)
    return flow, known


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """KITTI's 16-bit PNG: u and v as ``64 * flow + 2 ** 15``, and whether they are known.

    Raises:
        ValueError: It is no such file.
        OSError: The file cannot be read.
    """
    import av  # Pillow cuts colours off at 8 bits

    data = path.read_bytes()
    try:
        decoder = av.CodecContext.create("png", "r")
        [frame] = [frame for packet in (av.Packet(data), None) for frame in decoder.decode(packet)]
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{path}: is no PNG file that can be read ({error})") from None
    if frame.format.name != "rgb48be":
        raise ValueError(f"{path}: is {frame.format.name}, KITTI's flow is PNG of 16 bits and 3 colours")
    values = frame.to_ndarray().astype(np.float32)
    return (values[..., :2] - 2**15) / 64, values[..., 2] > 0
