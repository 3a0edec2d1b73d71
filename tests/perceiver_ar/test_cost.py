"""Costs against published parameter counts, torch's own FLOP counter, and what autograd really keeps."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_ar import PerceiverAR, PerceiverARConfig, draw_prefix_keep
from perceiver_ar.blocks.attend import using_backend
from perceiver_ar.cost import (
    activation_bytes,
    count_parameters,
    forward_flops,
    forward_flops_of,
    parameter_counts,
    parameter_counts_of,
    training_flops_per_token,
)
from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.perceiver_config import EncoderConfig, ImageClassifierConfig


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        (30_563_078, dict(vocab_size=262, max_seq_len=4096, max_latents=512, num_channels=512, num_layers=8)),
        (
            453_950_720,
            dict(
                vocab_size=32_000,
                max_seq_len=1024,
                max_latents=512,
                num_channels=1280,
                num_heads=10,
                num_layers=20,
                rotary_fraction=1.0,
                learned_positions=False,
                output_norm=True,
                output_bias=False,
            ),
        ),
        (
            134_840_832,
            dict(
                vocab_size=389,
                max_seq_len=6144,
                max_latents=2048,
                num_channels=768,
                num_layers=18,
                learned_positions=False,
                output_norm=True,
                output_bias=False,
            ),
        ),
        (
            28_531_712,
            dict(
                vocab_size=389,
                max_seq_len=4096,
                max_latents=512,
                num_channels=512,
                num_layers=8,
                learned_positions=False,
                output_norm=True,
                output_bias=False,
            ),
        ),
    ],
)
def test_published_parameter_counts(parameters, options):
    assert count_parameters(PerceiverARConfig.preset("perceiver_io", **options)) == parameters


@pytest.fixture
def scores_as_matrix_products():
    with using_backend("reference"):
        yield


SMALL = dict(vocab_size=50, max_seq_len=96, max_latents=32, num_channels=64, num_heads=4, num_layers=2)


@pytest.mark.parametrize(
    "config",
    [
        PerceiverARConfig(**SMALL),
        PerceiverARConfig(**SMALL, mlp="swiglu", self_attention_widening=2.0, qk_norm=True),
        PerceiverARConfig.preset("perceiver_io", **SMALL),
        PerceiverARConfig.preset("paper", **SMALL | dict(num_input_channels=32)),
    ],
)
@pytest.mark.parametrize(("prefix_length", "num_latents"), [(64, 32), (0, 32), (20, 7)])
def test_flops_equal_those_counted_on_a_real_forward(config, prefix_length, num_latents, scores_as_matrix_products):
    model = PerceiverAR(config).eval()
    ids = torch.zeros(3, prefix_length + num_latents, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, prefix_length)
    flops = forward_flops(config, batch=3, prefix_length=prefix_length, num_latents=num_latents)
    assert flops.dense_total == counter.get_total_flops()
    assert flops.causal_discount < flops.dense_total


def test_flops_per_latent_follow_the_closed_formula():
    d, n, m, layers, vocab = 128, 64, 512, 5, 1000
    config = PerceiverARConfig(
        vocab_size=vocab, max_seq_len=m, max_latents=n, num_channels=d, num_layers=layers, prefix_dropout=0.25
    )
    keys = 448 - 112 + 64
    formula = (
        24 * d**2 * layers
        + 2 * n * d * layers
        + 20 * d**2
        + keys / n * 4 * d**2
        + 4 * keys * d
        - 2 * n * d
        + 2 * d * vocab
    )
    assert training_flops_per_token(config) == 3 * formula


def test_prefix_dropout_cuts_the_prefix_cost_in_proportion():
    whole, half = (forward_flops(PerceiverARConfig(**SMALL), prefix_length=p) for p in (64, 32))
    assert half.prefix * 2 == whole.prefix
    assert (half.self_attention, half.head) == (whole.self_attention, whole.head)


def test_parts_add_up():
    config = PerceiverARConfig(**SMALL)
    model = PerceiverAR(config)
    assert sum(parameter_counts(config).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("overrides", [{}, dict(mlp="gelu", norm="layernorm"), dict(mlp="swiglu", prefix_dropout=0.5)])
def test_activation_bytes_are_close_to_what_autograd_keeps(checkpointing, overrides):
    config = PerceiverARConfig(
        **dict(vocab_size=64, max_seq_len=1024, max_latents=256, num_channels=128, num_heads=4, num_layers=4)
        | overrides
    )
    model = PerceiverAR(config).train()
    model.activation_checkpointing = checkpointing
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(4, 1024, dtype=torch.long)
    prefix_keep = draw_prefix_keep(0, torch.arange(4), 768, config.prefix_dropout)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(ids, 768, prefix_keep=prefix_keep).hidden
    estimate = activation_bytes(config, micro_batch=4, precision="fp32", checkpointing=checkpointing)
    assert out.requires_grad
    assert 0.85 < estimate / sum(kept.values()) < 1.15


IMAGES = ImageClassifierConfig(
    image_shape=(8, 8),
    num_classes=3,
    num_frequency_bands=3,
    encoder=EncoderConfig(num_latents=4, latent_channels=16, num_cross_attentions=2, num_blocks=2, layers_per_block=1),
)


def test_flops_of_any_model_are_those_of_its_matrix_products(scores_as_matrix_products):
    images = torch.zeros(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        ImageClassifier(IMAGES)(images)
    with using_backend("flash"):  # which knows no meta device
        assert forward_flops_of(partial(ImageClassifier, IMAGES), images) == counter.get_total_flops()


def test_sequence_dropout_saves_flops():
    halved = replace(IMAGES, encoder=replace(IMAGES.encoder, sequence_dropout=0.5))
    images = torch.zeros(2, 3, 8, 8)
    whole, less = (forward_flops_of(partial(ImageClassifier, config), images) for config in (IMAGES, halved))
    channels, latents, batch, uses, left_out = IMAGES.input_channels, 4, 2, 2, 32
    assert whole - less == batch * uses * left_out * (4 * channels**2 + 4 * latents * channels)


def test_parameters_of_any_model_are_counted_by_part():
    counts = parameter_counts_of(partial(ImageClassifier, IMAGES))
    assert list(counts) == ["encoder", "decoder", "output"]
    assert sum(counts.values()) == sum(p.numel() for p in ImageClassifier(IMAGES).parameters())
