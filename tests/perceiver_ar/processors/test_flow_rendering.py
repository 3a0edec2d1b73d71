import colorsys
import math

import numpy as np

from perceiver_ar.processors.flow.rendering import color_wheel, render_flow, side_by_side


def test_direction_is_the_hue_and_speed_the_saturation() -> None:
    flow = np.random.default_rng(0).normal(size=(20, 30, 2)) * 15
    flow[0, 0] = 0
    rendered = render_flow(flow, max_flow=20)
    for row, column in np.ndindex(20, 30):
        x, y = flow[row, column]
        hue = math.atan2(y, x) / (2 * math.pi) % 1
        expected = colorsys.hsv_to_rgb(hue, min(1, math.hypot(x, y) / 20), 1)
        np.testing.assert_allclose(rendered[row, column], np.array(expected) * 255, atol=0.51)


def test_colours_are_saturated_at_24_pixels() -> None:
    rendered = render_flow([[(0, 0), (12, 0), (24, 0), (100, 0), (-24, 0), (0, 24), (0, -24)]])
    assert rendered[0].tolist() == [
        [255, 255, 255],
        [255, 128, 128],
        [255, 0, 0],
        [255, 0, 0],
        [0, 255, 255],
        [128, 255, 0],
        [128, 0, 255],
    ]


def test_the_wheel_shows_the_colour_of_the_flow_from_its_centre() -> None:
    wheel = color_wheel(101)
    assert wheel[50, 50].tolist() == [255, 255, 255, 255]
    assert wheel[50, 50 + 25, :3].tolist() == render_flow([[(25 / 50.5, 0)]], max_flow=1)[0, 0].tolist()
    assert wheel[50 - 40, 50, :3].tolist() == render_flow([[(0, -40 / 50.5)]], max_flow=1)[0, 0].tolist()
    assert wheel[0, 0, 3] == 0


def test_frame_and_flow_lie_side_by_side_with_a_legend_in_the_corner() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    both = side_by_side(frame, np.zeros((100, 150, 2)))
    assert both.shape == (100, 300, 3)
    assert (both[:, :150] == frame).all()
    panel = both[:, 150:]
    assert (panel[:60] == 255).all()
    assert (panel[:, :100] == 255).all()
    # Right of the centre of the wheel, which is 20 pixels wide and 4 off the corner, it is red; under it, green.
    assert panel[86, 144].argmax() == 0
    assert panel[94, 136].argmax() == 1


def test_frames_too_small_for_a_legend_have_none() -> None:
    both = side_by_side(np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40, 2)))
    assert (both[:, 40:] == 255).all()
