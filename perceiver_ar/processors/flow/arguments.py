"""What the command is asked to do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from perceiver_ar.processors.flow.rendering import MAX_FLOW
from perceiver_ar.processors.formats import CODECS, IMAGES

PICTURE = ".png"
RATE_OF_IMAGES = 10
DESCRIPTION = """\
Show how things move in a video: its optical flow by a Perceiver IO, as a video, an image or .flo files.

The direction of motion is shown as hue, its speed as saturation; a wheel in the corner is the legend. Frames may have
any size: they are cut into overlapping tiles of the model's size. Nothing is left half written."""
EXAMPLES = """\
examples:
  python -m perceiver_ar.processors.flow street.mp4 --model models/flow --out street-flow.mp4
  python -m perceiver_ar.processors.flow frames/ --model models/flow --out flow.mp4 --flo flow/ --fps 24
  python -m perceiver_ar.processors.flow before.png after.png --model models/flow --out moved.png
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, and `images`: the files that are the frames, or None where the input is a video.

    Raises:
        OSError: there is no such input.
        ValueError: an argument is wrong.
    """
    parser = _Parser(
        prog="python -m perceiver_ar.processors.flow",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="+", type=Path, help="a video, a folder of images, or images in their order")
    add("--model", metavar="DIR", required=True, help="folder of a flow model, or owner/name[@revision] on the Hub")
    add("--out", metavar="FILE", type=Path, help=f"video ({', '.join(CODECS)}), or {PICTURE} of the first two frames")
    add("--flo", metavar="DIR", type=Path, help="folder to write the flow of each pair of frames into, as .flo files")
    add("--flow-only", action="store_true", help="leave the frames and the legend out of FILE")
    add("--max-flow", metavar="PX", type=float, default=MAX_FLOW, help="pixels at full saturation (%(default)g)")
    add("--fps", metavar="N", type=float, help=f"frames per second of FILE (the video's; {RATE_OF_IMAGES} for images)")
    add("--frames", metavar="N", type=int, help="read only the first N frames")
    add("--micro-batch", metavar="N", type=int, default=1, help="tiles that the model sees at once (%(default)s)")
    arguments = parser.parse_args(argv)
    if problems := "; ".join(_problems(arguments)):
        raise ValueError(problems)
    arguments.images = _images(arguments.input)
    if arguments.out is not None and arguments.out.suffix.lower() == PICTURE:
        arguments.frames = 2
    return arguments


def _problems(arguments: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments, by themselves and as names of files."""
    out, flo = arguments.out, arguments.flo
    if out is None and flo is None:
        yield "--out, --flo: nothing to write, give one of them or both (see --help)"
    if out is not None and out.suffix.lower() not in (*CODECS, PICTURE):
        yield f"--out: {out} must end in {', '.join(CODECS)} or {PICTURE}"
    if out is not None and not out.parent.is_dir():
        yield f"--out: there is no folder {out.parent}"
    if out is not None and out == flo:
        yield f"--out, --flo: are both {out}, give them different names"
    for path in (out, flo):
        if path is not None and path.exists():
            yield f"{path}: exists; choose another name, or remove it"
    if not 0 < arguments.max_flow < float("inf"):
        yield f"--max-flow: must be a positive number of pixels, not {arguments.max_flow:g}"
    if arguments.fps is not None and not 0.1 <= arguments.fps <= 1000:
        yield f"--fps: must be from 0.1 to 1000, not {arguments.fps:g}"
    if arguments.frames is not None and arguments.frames < 2:
        yield f"--frames: must be at least 2, not {arguments.frames}: motion is from one frame to another"
    if arguments.micro_batch < 1:
        yield f"--micro-batch: must be at least 1, not {arguments.micro_batch}"


def _images(inputs: list[Path]) -> list[Path] | None:
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    first = inputs[0]
    if first.is_dir() and len(inputs) == 1:
        images = sorted((path for path in first.iterdir() if path.suffix.lower() in IMAGES), key=_natural_order)
        if len(images) < 2:
            raise ValueError(f"{first}: has {len(images)} images, motion needs two or more ({', '.join(IMAGES)})")
        return images
    if len(inputs) > 1:
        return inputs
    if first.suffix.lower() in IMAGES:
        raise ValueError(f"{first}: is one image, motion needs two or more, or a video")
    return None


def _natural_order(path: Path) -> list[str | int]:
    """Puts frame 10 behind frame 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
