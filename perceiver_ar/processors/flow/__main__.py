"""The command: frames of a video -> their optical flow, as a video, an image or .flo files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from itertools import chain, islice
from typing import TYPE_CHECKING

from perceiver_ar.processors.flow.arguments import PICTURE, RATE_OF_IMAGES, parse
from perceiver_ar.processors.flow.rendering import render_flow, side_by_side

if TYPE_CHECKING:  # they take seconds to import: mistakes in the arguments are not to wait for them
    from torch import Tensor

    from perceiver_ar.models.flow import OpticalFlow
    from perceiver_ar.processors.flow.outputs import Add, Flow
    from perceiver_ar.processors.video import Frame, Frames

BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str]) -> None:
    """Raises OSError or ValueError for bad input."""
    arguments = parse(argv)
    source = _open_frames(arguments)
    number = _write_flow(_load_model(arguments.model), source, arguments)
    if source.length is not None and number + 1 < 0.9 * source.length:
        print(f"warning: {arguments.input[0]}: ended after {number + 1} of {source.length} frames", file=sys.stderr)
    for path in (arguments.out, arguments.flo):
        if path is not None:
            print(path)


def _open_frames(arguments: argparse.Namespace) -> Frames:
    """The frames asked for, at least two."""
    from perceiver_ar.processors.video import Frames, read_images, read_video

    source = read_video(arguments.input[0]) if arguments.images is None else read_images(arguments.images)
    frames = islice(source.frames, arguments.frames)
    first = list(islice(frames, 2))
    if len(first) < 2:
        raise ValueError(f"{arguments.input[0]}: has fewer than two frames, there is no motion to see")
    known = [length for length in (source.length, arguments.frames) if length is not None]
    return Frames(chain(first, frames), source.rate, min(known, default=None))


def _load_model(name: str) -> OpticalFlow:
    """In evaluation mode, on the GPU where there is one; whatever `perceiver_ar.convert` reads too."""
    import torch

    from perceiver_ar.convert.sources import open_source
    from perceiver_ar.models.flow import OpticalFlow
    from perceiver_ar.models.perceiver_config import OpticalFlowConfig

    source = open_source(name)
    if not isinstance(source.architecture, OpticalFlowConfig):
        raise ValueError(f"{name}: is no model of optical flow")
    with torch.device("meta"):
        model = OpticalFlow(source.architecture)
    model.load_state_dict(source.weights(), assign=True)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _predictor(model: OpticalFlow) -> Callable[[Tensor], Tensor]:
    import torch

    @torch.inference_mode()
    def predict(patches: Tensor) -> Tensor:
        return model(patches.to(model.output.weight.device))

    return predict


def _outputs(arguments: argparse.Namespace, rate: Fraction | None) -> Iterator[AbstractContextManager[Add]]:
    from perceiver_ar.processors.flow.outputs import flo_output, image_output, video_output

    def draw(frame: Frame, flow: Flow) -> Frame:
        most = arguments.max_flow
        return render_flow(flow, most) if arguments.flow_only else side_by_side(frame, flow, most)

    if arguments.out is not None and arguments.out.suffix.lower() == PICTURE:
        yield image_output(arguments.out, draw)
    elif arguments.out is not None:
        rate = Fraction(arguments.fps or rate or RATE_OF_IMAGES).limit_denominator(1001)
        yield video_output(arguments.out, draw, rate)
    if arguments.flo is not None:
        yield flo_output(arguments.flo)


def _write_flow(model: OpticalFlow, source: Frames, arguments: argparse.Namespace) -> int:
    """How many flows there were."""
    from perceiver_ar.processors.flow.estimation import flow_of_frames
    from perceiver_ar.processors.flow.progress import show_progress

    height, width = model.config.image_shape
    flows = flow_of_frames(source.frames, (height, width), _predictor(model), arguments.micro_batch)
    total = None if source.length is None else source.length - 1
    number = 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(output) for output in _outputs(arguments, source.rate)]
        for frame, flow in show_progress(flows, "frames", total):
            number += 1
            for add in outputs:
                add(frame, flow)
    return number


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        # As in all commands: 1 where the same may do later, 2 for bad input.
        sys.exit(1 if isinstance(error, ConnectionError) else BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
