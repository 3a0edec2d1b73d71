"""Generated scenes: their flow is true, in both directions, and what they hide is marked."""

import numpy as np
import pytest

from pretrain.tasks.optical_flow.config import MotionSection
from pretrain.tasks.optical_flow.generator import draw_scene
from pretrain.tasks.optical_flow.motion import draw_motion
from pretrain.tasks.optical_flow.pair import Pair, sample_bilinear
from pretrain.tasks.optical_flow.textures import draw_texture

SHAPE = (48, 64)
MOTION = MotionSection(max_shift=5, max_rotation=20, max_zoom=1.3, max_bend=4, max_blobs=3)


def scene(seed: int, motion: MotionSection = MOTION) -> Pair:
    return draw_scene(SHAPE, motion, None, np.random.default_rng(seed)).pair()


def pixels(shape: tuple[int, int]) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1).astype(np.float32)


def test_motions_are_undone_exactly() -> None:
    points = pixels(SHAPE).astype(np.float64)
    for seed in range(20):
        motion = draw_motion(MOTION, np.array([31.5, 23.5]), 48, np.random.default_rng(seed))
        moved = motion.forward(points)
        assert np.abs(moved - points).max() > 0.1
        np.testing.assert_allclose(motion.inverse(moved), points, atol=1e-9)


def test_flow_leads_to_the_same_thing_in_the_other_frame() -> None:
    followed, static, hidden = [], [], []
    for seed in range(12):
        pair = scene(seed)
        for direction, (here, there) in enumerate((pair.frames, pair.frames[::-1])):
            flow, occluded = pair.flow[direction], pair.occluded[direction]
            error = np.abs(sample_bilinear(there, pixels(SHAPE) + flow) - here).mean(axis=-1)
            followed.append(error[~occluded].mean())
            static.append(np.abs(there.astype(float) - here).mean())
            hidden.extend(error[occluded])
    assert np.mean(followed) < 0.25 * np.mean(static)  # what remains is the blur of sampling twice
    assert np.mean(hidden) > 4 * np.mean(followed)


def test_what_is_seen_in_both_frames_is_led_back_to_where_it_was() -> None:
    pair = scene(3, MotionSection(max_shift=5, max_rotation=20, max_zoom=1.3, max_bend=4, max_blobs=0))
    there = pixels(SHAPE) + pair.flow[0]
    back = sample_bilinear(pair.flow[1], there)
    seen = ~pair.occluded[0]
    assert 0.3 < seen.mean() < 1
    np.testing.assert_allclose((pair.flow[0] + back)[seen], 0, atol=0.05)


def test_a_scene_without_motion_stands_still() -> None:
    still = MotionSection(max_shift=0, max_rotation=0, max_zoom=1, max_bend=0, max_blobs=3)
    for seed in range(3):
        pair = scene(seed, still)
        np.testing.assert_allclose(pair.flow, 0, atol=1e-4)
        assert not np.abs(pair.frames[0].astype(int) - pair.frames[1]).max() > 1
        assert not pair.occluded[:, 1:-1, 1:-1].any()


def test_scenes_follow_from_their_stream() -> None:
    first, again, other = scene(5), scene(5), scene(6)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first.frames == other.frames).all()


@pytest.mark.parametrize("shape", [(2, 2), (5, 300), (33, 7)])
def test_textures_have_any_shape_and_contrast(shape: tuple[int, int]) -> None:
    texture = draw_texture(shape, np.random.default_rng(0))
    assert texture.shape == (*shape, 3) and texture.dtype == np.uint8
    assert texture.std() > 5
