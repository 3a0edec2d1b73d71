"""Costs against published parameter counts, torch's own FLOP counter, and what autograd really keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_ar import PerceiverAR, PerceiverARConfig, draw_prefix_keep
from perceiver_ar.blocks.attend import use_backend
from perceiver_ar.cost import (
    activation_bytes,
    count_parameters,
    forward_flops,
    parameter_counts,
    training_flops_per_token,
)


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
    use_backend("reference")
    yield
    use_backend("auto")


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
