"""The multimodal autoencoder against transformers' and against itself."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from perceiver_ar.convert.transformers_perceiver import from_transformers, transformers_names
from perceiver_ar.models.from_json import from_json
from perceiver_ar.models.multimodal import UNKNOWN_CLASS, MultimodalAutoencoder
from perceiver_ar.models.multimodal_config import MULTIMODAL_PRESETS, MultimodalConfig
from perceiver_ar.models.perceiver_config import DecoderConfig, EncoderConfig

TINY = MultimodalConfig(
    video_shape=(4, 6, 8),
    video_patch=(2, 2, 4),
    video_frequency_bands=3,
    num_audio_samples=40,
    audio_patch=8,
    audio_frequency_bands=4,
    num_classes=3,
    num_label_query_channels=10,
    num_output_channels=12,
    encoder=EncoderConfig(
        num_latents=5, latent_channels=16, self_attention_heads=2, num_blocks=2, layers_per_block=1, init_scale=0.3
    ),
    decoder=DecoderConfig(cross_attention_residual=False, init_scale=0.3),
)


@pytest.fixture(scope="module")
def model() -> MultimodalAutoencoder:
    torch.manual_seed(0)
    return MultimodalAutoencoder(TINY).eval()


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    video, audio = (torch.rand(2, *shape, generator=generator) for shape in ((4, 3, 6, 8), (40,)))
    return video, audio * 2 - 1, torch.tensor([2, 0])


def parity(values: dict, rows: int, dtype: torch.dtype, tolerance: float) -> None:
    from transformers import PerceiverConfig, PerceiverForMultimodalAutoencoding

    config = from_transformers("PerceiverForMultimodalAutoencoding", values)
    generator = torch.Generator().manual_seed(2)
    theirs = PerceiverForMultimodalAutoencoding(PerceiverConfig(**values)).eval().to(dtype)
    weights = {
        name: (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        + 0.1 * torch.randn(weight.shape, generator=generator, dtype=dtype)
        for name, weight in theirs.state_dict().items()
    }
    theirs.load_state_dict(weights)
    ours = MultimodalAutoencoder(config).eval().to(dtype)
    ours.load_state_dict({name: weights[other] for name, other in transformers_names(config).items()})
    frames, height, width = config.video_shape
    video = torch.rand(rows, frames, 3, height, width, generator=generator, dtype=dtype)
    audio = torch.rand(rows, config.num_audio_samples, generator=generator, dtype=dtype)
    label = torch.randint(0, config.num_classes, (rows,), generator=generator)
    sizes = ((config.num_pixels, 50), (config.num_audio_patches, 4))
    points = tuple(torch.randint(0, size, (count,), generator=generator) for size, count in sizes)
    for hidden in (True, False):
        theirs.perceiver.input_preprocessor.mask_probs["label"] = float(hidden)
        with torch.inference_mode():
            expected = theirs(
                dict(image=video, audio=audio[..., None], label=F.one_hot(label, config.num_classes).to(dtype)),
                subsampled_output_points=dict(image=points[0], audio=points[1], label=None),
            ).logits
            found = ours(video, audio, None if hidden else label, *(chosen.expand(rows, -1) for chosen in points))
        pairs = (
            (found.video, expected["image"]),
            (found.audio.flatten(1), expected["audio"]),
            (found.label, expected["label"]),
        )
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("shaped_as", ["kv", "q"])
def test_computes_what_transformers_computes(shaped_as: str) -> None:
    sizes = dict(num_latents=6, d_latents=16, num_blocks=2, num_self_attends_per_block=2, num_self_attention_heads=4)
    heads = dict(num_cross_attention_heads=1, cross_attention_shape_for_attention=shaped_as)
    video = dict(num_frames=3, image_size=5, output_shape=[1, 3, 16, 8])
    sound = dict(audio_samples_per_frame=32, samples_per_patch=8)
    outputs = dict(num_labels=9, output_num_channels=24, _label_trainable_num_channels=40)
    parity({**sizes, **heads, **video, **sound, **outputs}, rows=2, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.slow
def test_computes_what_transformers_computes_at_the_published_size() -> None:
    latents = dict(num_latents=784, d_latents=512, num_self_attends_per_block=8, num_cross_attention_heads=1)
    # In float32, the outputs of transformers' own class are up to 3e-5 from what they are in float64.
    parity(dict(**latents, num_labels=700), rows=1, dtype=torch.float64, tolerance=1e-10)


def test_preset_has_the_published_size() -> None:
    config = from_json(MultimodalConfig, MULTIMODAL_PRESETS["perceiver-io-multimodal"])
    assert config == MultimodalConfig()
    with torch.device("meta"):
        model = MultimodalAutoencoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_858_855
    assert config.input_channels == 704


@pytest.mark.parametrize("points_at_a_time", [1, 7, 1000])
def test_a_clip_is_made_of_its_points(model, clips, points_at_a_time: int) -> None:
    with torch.no_grad():
        latents = model.encode(*clips)
        whole = model.reconstruct(latents, points_at_a_time)
        # Frame 1, row 2, column 5 and frame 3, row 5, column 0; patches 4 and 0.
        some = model.decode(latents, torch.tensor([[69, 184]] * 2), torch.tensor([[4, 0]] * 2))
    assert whole.video.shape == clips[0].shape and whole.audio.shape == clips[1].shape
    expected = torch.stack((whole.video[:, 1, :, 2, 5], whole.video[:, 3, :, 5, 0]), dim=1)
    torch.testing.assert_close(some.video, expected)
    torch.testing.assert_close(some.audio, whole.audio.unflatten(1, (5, 8))[:, [4, 0]])
    torch.testing.assert_close(some.label, whole.label)


def test_what_is_hidden_does_not_matter(model, clips) -> None:
    video, audio, label = clips
    rows = torch.tensor([[True, False, False], [False, True, True]])
    with torch.no_grad():
        latents = model.encode(video, audio, label, rows)
        torch.testing.assert_close(latents[:1], model.encode(None, audio[:1], label[:1]))
        torch.testing.assert_close(latents[1:], model.encode(video[1:], None, None))
        torch.testing.assert_close(latents[1:], model.encode(video[1:], None, torch.tensor([UNKNOWN_CLASS])))
        shown = model.encode(video, audio, label)
        assert not torch.allclose(latents, shown, atol=1e-3)


def test_order_of_pixels_within_patches_is_kept(model, clips) -> None:
    video, audio, label = clips
    with torch.no_grad():
        flipped = model.encode(video.flip(-1), audio, label)
        assert not torch.allclose(flipped, model.encode(video, audio, label), atol=1e-3)


@pytest.mark.parametrize(
    "wrong, named",
    [
        (lambda video, audio, label: (video[:, :, :1], audio, label), r"video: .*\[4, 3, 6, 8\], not \[4, 1, 6, 8\]"),
        (lambda video, audio, label: (video, audio[:, 1:], label), r"audio: .*\[40\], not \[39\]"),
        (lambda video, audio, label: (video, audio, label[:, None]), r"label: .*\[\], not \[1\]"),
    ],
)
def test_clips_of_another_shape_are_refused(model, clips, wrong, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        model.encode(*wrong(*clips))


@pytest.mark.parametrize(
    "change, problem",
    [
        (dict(video_patch=(3, 2, 4)), r"video_shape .* must divide into patches of \[3, 2, 4\]"),
        (dict(audio_patch=7), r"num_audio_samples \(40\) must divide into patches of 7"),
        (dict(num_classes=0, audio_patch=0), r"audio_patch \(0\) must be at least 1; num_classes \(0\) must be"),
        (dict(video_max_resolution=(1, 0, 1)), r"video_max_resolution \(\[1, 0, 1\]\)"),
        (dict(decoder=DecoderConfig(cross_attention_heads=3)), r"16 query and key channels cannot be divided among 3"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(TINY, **change)
