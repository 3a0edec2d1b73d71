"""Presets have the published sizes, and values that make no model are refused with what is wrong."""

from functools import partial

import pytest
from pydantic import TypeAdapter, ValidationError

from perceiver_ar.cost import parameter_counts_of
from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.perceiver_config import (
    PERCEIVER_PRESETS,
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
    presets_of,
)
from perceiver_ar.models.text import MaskedLM

MODELS = {MaskedLMConfig: MaskedLM, ImageClassifierConfig: ImageClassifier, OpticalFlowConfig: OpticalFlow}

PUBLISHED = {
    "perceiver-imagenet": 44_912_254,  # "44.9M" in the paper
    "perceiver-io-imagenet-fourier": 48_440_627,
    "perceiver-io-imagenet-learned": 62_255_848,
    "perceiver-io-imagenet-conv": 48_646_522,
    "perceiver-io-mnist": 907_212,
    "perceiver-io-mlm-bytes": 201_108_230,
    "perceiver-io-mlm-sentencepiece": 223_155_456,  # "223M" in the paper
    "perceiver-io-flow": 41_057_134,
}


def test_every_preset_has_as_many_parameters_as_published():
    counts = {}
    for name, (config_class, values) in PERCEIVER_PRESETS.items():
        config = TypeAdapter(config_class).validate_python(values)
        counts[name] = sum(parameter_counts_of(partial(MODELS[config_class], config)).values())
    assert counts == PUBLISHED


def test_presets_are_found_by_what_they_configure():
    assert presets_of(OpticalFlowConfig) == {"perceiver-io-flow": PERCEIVER_PRESETS["perceiver-io-flow"][1]}
    assert len(presets_of(ImageClassifierConfig)) == 5


def test_the_first_papers_preset_reads_the_image_eight_times_with_two_sets_of_weights():
    config = TypeAdapter(ImageClassifierConfig).validate_python(PERCEIVER_PRESETS["perceiver-imagenet"][1])
    encoder = config.encoder
    assert (encoder.num_latents, encoder.latent_channels) == (512, 1024)
    assert (encoder.num_cross_attentions, encoder.num_blocks, encoder.layers_per_block) == (8, 8, 6)
    assert (encoder.distinct_cross_attentions, encoder.distinct_blocks) == (2, 1)
    assert (encoder.cross_attention_heads, encoder.self_attention_heads) == (1, 8)
    assert (config.num_frequency_bands, config.resolution, config.decoder) == (64, (224, 224), None)


SMALL = EncoderConfig(num_latents=4, latent_channels=8, self_attention_heads=2, num_blocks=2, layers_per_block=1)


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (partial(EncoderConfig, num_latents=0, num_blocks=0), "num_latents (0) must be at least 1; num_blocks (0)"),
        (partial(EncoderConfig, num_cross_attentions=9), "num_cross_attentions (9) must be at most num_blocks (8)"),
        (partial(EncoderConfig, latent_channels=100), "100 query and key channels cannot be divided among 8 heads"),
        (partial(EncoderConfig, self_attention_v_channels=4), "4 value channels cannot be divided among 8 heads"),
        (partial(EncoderConfig, cross_attention_qk_channels=0), "cross_attention_qk_channels (0) must be at least 1"),
        (partial(EncoderConfig, sequence_dropout=1.0), "sequence_dropout (1.0) must be in [0, 1)"),
        (partial(EncoderConfig, cross_attention_widening=0.0), "cross_attention_widening (0.0) must leave at least 1"),
        (partial(OpticalFlowConfig, decoder=DecoderConfig(widening=1e-4)), "decoder.widening (0.0001) must leave at"),
        (partial(DecoderConfig, widening=0.0, init_scale=0.0), "widening (0.0) must be positive; init_scale (0.0)"),
        (
            partial(ImageClassifierConfig, encoder=EncoderConfig(cross_attention_heads=2)),
            "encoder.cross_attention: 261 query and key channels cannot be divided among 2 heads",
        ),
        (partial(ImageClassifierConfig, image_shape=(8, 0)), "image_shape ([8, 0]) must have a size of at least 1"),
        (partial(ImageClassifierConfig, image_shape=()), "image_shape ([]) must have a size of at least 1"),
        (
            partial(ImageClassifierConfig, image_shape=(8,), max_resolution=(8, 8)),
            "max_resolution ([8, 8]) must have a size of at least 1 for each of 1 axes",
        ),
        (partial(ImageClassifierConfig, inputs="conv", image_shape=(4, 9)), "sides of at least 5 pixels"),
        (partial(ImageClassifierConfig, inputs="conv", image_shape=(9,)), "needs an image_shape of height and width"),
        (partial(ImageClassifierConfig, pooling_norm=True), "pooling_norm needs decoder: null"),
        (partial(ImageClassifierConfig, num_query_channels=8, decoder=None), "num_query_channels needs a decoder"),
        (partial(OpticalFlowConfig, image_shape=(8, 8, 8)), "image_shape ([8, 8, 8]) must be height and width"),
        (partial(OpticalFlowConfig, rescale_factor=0.0), "rescale_factor (0.0) must be positive"),
        (
            partial(MaskedLMConfig, vocab_size=9, num_query_channels=8, encoder=SMALL),
            "num_query_channels other than num_input_channels needs tied_output: false",
        ),
        (
            partial(
                TextClassifierConfig,
                vocab_size=0,
                num_classes=2,
                encoder=SMALL,
                decoder=DecoderConfig(cross_attention_heads=3),
            ),
            "vocab_size (0) must be at least 1; decoder: 8 query and key channels cannot be divided among 3 heads",
        ),
    ],
)
def test_values_that_make_no_model_are_refused(build, problem):
    with pytest.raises(ValueError) as refused:
        build()
    assert problem in str(refused.value)


def test_unknown_keys_of_parts_are_refused_where_files_are_read():
    with pytest.raises(ValidationError, match=r"encoder\.num_layers"):
        TypeAdapter(MaskedLMConfig).validate_python({"vocab_size": 9, "encoder": {"num_layers": 2}})
