"""`pipeline("optical-flow")`, against the processing and the model by themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from perceiver_ar.hf.flow_pipeline import OpticalFlowPipeline
from perceiver_ar.processors.flow.estimation import flow_of_frames
from perceiver_ar.processors.flow.rendering import render_flow
from tests.perceiver_ar.hf.perceiver_models import build

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 13, 17, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> OpticalFlowPipeline:
    folder = tmp_path_factory.mktemp("flow")
    build("optical_flow").save_pretrained(folder)
    return pipeline("optical-flow", str(folder))


@torch.no_grad()
def expected_flows(flow_pipeline: OpticalFlowPipeline) -> list[np.ndarray]:
    return [flow for _, flow in flow_of_frames(FRAMES, (8, 12), lambda patches: flow_pipeline.model(patches).logits)]


def test_a_pair_of_any_kind_of_frames_gets_its_flow_and_a_picture_of_it(
    flow_pipeline: OpticalFlowPipeline, tmp_path: Path
) -> None:
    arrays = FRAMES[0], FRAMES[1]
    images = tuple(Image.fromarray(frame) for frame in arrays)
    files = str(tmp_path / "0.png"), str(tmp_path / "1.png")
    for image, file in zip(images, files, strict=True):
        image.save(file)

    expected = expected_flows(flow_pipeline)[0]
    assert np.abs(expected).max() > 0
    for pair in (arrays, images, files):
        result = flow_pipeline(pair, max_flow=1.0)
        np.testing.assert_array_equal(result["flow"], expected)
        np.testing.assert_array_equal(np.asarray(result["image"]), render_flow(expected, 1.0))


def test_lists_and_generators_of_pairs_get_one_each(flow_pipeline: OpticalFlowPipeline) -> None:
    pairs = [(FRAMES[0], FRAMES[1]), (FRAMES[1], FRAMES[2])]
    for given in (pairs, (pair for pair in pairs)):
        results = flow_pipeline(given, micro_batch_size=3)
        for result, expected in zip(results, expected_flows(flow_pipeline), strict=True):
            np.testing.assert_allclose(result["flow"], expected, atol=1e-5)


def test_a_saved_pipeline_is_one_again(flow_pipeline: OpticalFlowPipeline, tmp_path: Path) -> None:
    flow_pipeline.save_pretrained(tmp_path / "saved")
    pair = FRAMES[0], FRAMES[1]
    saved = pipeline("optical-flow", str(tmp_path / "saved"))
    np.testing.assert_array_equal(saved(pair)["flow"], flow_pipeline(pair)["flow"])


def test_what_is_no_pair_is_refused(flow_pipeline: OpticalFlowPipeline) -> None:
    first, second, _ = FRAMES
    with pytest.raises(ValueError, match="a pair of frames must be a tuple"):
        flow_pipeline([first, second])
    with pytest.raises(ValueError, match="both frames must have one size, not 17x13 and 16x13 pixels"):
        flow_pipeline((first, second[:, 1:]))
    with pytest.raises(ValueError, match="an image has 4 channels, the model reads 3"):
        flow_pipeline((np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 4), np.uint8)))
