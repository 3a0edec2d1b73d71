"""Perceiver and Perceiver IO against a plain float64 computation, and what each option does."""

import math
from dataclasses import replace

import pytest
import torch

from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.perceiver import PerceiverEncoder, drop_elements
from perceiver_ar.models.perceiver_config import DecoderConfig, EncoderConfig, ImageClassifierConfig

ENCODER = EncoderConfig(
    num_latents=5,
    latent_channels=16,
    cross_attention_heads=1,
    self_attention_heads=4,
    num_cross_attentions=3,
    num_blocks=4,
    layers_per_block=2,
)
CONFIG = ImageClassifierConfig(
    image_shape=(6, 5), num_classes=3, num_frequency_bands=4, encoder=ENCODER, decoder=None, pooling_norm=True
)


def randomized(model):
    """Random norms and biases too, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model.eval()


class Plain:
    """The papers' equations, a function each, on the weights of a state dict."""

    def __init__(self, weights, config):
        self.weights = weights
        self.config = config

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name, q, kv, heads):
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p, x in zip("qkv", (q, kv, kv), strict=True))
        read = []
        for head in range(heads):
            part = [x[..., head * x.shape[-1] // heads : (head + 1) * x.shape[-1] // heads] for x in (q, k, v)]
            scores = part[0] @ part[1].mT / math.sqrt(part[0].shape[-1])
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            read.append(weights @ part[2])
        return self.linear(f"{name}.o_proj", torch.cat(read, dim=-1))

    def mlp(self, name, x):
        def gelu(y):
            return y * (1 + torch.erf(y / math.sqrt(2))) / 2

        up = self.linear(f"{name}.up", x)
        gated = f"{name}.gate.weight" in self.weights
        return self.linear(f"{name}.down", gelu(self.linear(f"{name}.gate", x)) * up if gated else gelu(up))

    def cross(self, name, latents, inputs, heads, residual=True):
        read = self.attention(
            f"{name}.attention", self.norm(f"{name}.q_norm", latents), self.norm(f"{name}.kv_norm", inputs), heads
        )
        latents = read + (latents if residual else 0)
        return latents + self.mlp(f"{name}.mlp", self.norm(f"{name}.mlp_norm", latents))

    def block(self, name, latents):
        for layer in range(self.config.encoder.layers_per_block):
            at = f"{name}.{layer}"
            x = self.norm(f"{at}.norm", latents)
            latents = latents + self.attention(f"{at}.attention", x, x, self.config.encoder.self_attention_heads)
            latents = latents + self.mlp(f"{at}.mlp", self.norm(f"{at}.mlp_norm", latents))
        return latents

    def positions(self):
        rows = []
        shape, bands = self.config.image_shape, self.config.num_frequency_bands
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
            at = [-1 + 2 * i / (n - 1) for i, n in zip(index, shape, strict=True)]
            frequencies = [[1 + j * (n / 2 - 1) / (bands - 1) for j in range(bands)] for n in shape]
            angles = [math.pi * f * x for x, axis in zip(at, frequencies, strict=True) for f in axis]
            rows.append([*at, *map(math.sin, angles), *map(math.cos, angles)])
        return torch.tensor(rows, dtype=torch.float64)

    def inputs(self, images):
        positions = self.positions().expand(len(images), -1, -1)
        return torch.cat((images.flatten(2).mT, positions), dim=-1)

    def encode(self, inputs, cross_layers, blocks):
        """`cross_layers` and `blocks`: which weights each use has."""
        latents = self.weights["encoder.latents"].expand(len(inputs), -1, -1)
        for i, block in enumerate(blocks):
            if i < len(cross_layers):
                latents = self.cross(f"encoder.cross_attention.{cross_layers[i]}", latents, inputs, 1)
            latents = self.block(f"encoder.self_attention.{block}", latents)
        return latents


CROSS_USES = {"none": [0, 1, 2], "except_first": [0, 1, 1], "all": [0, 0, 0]}
BLOCK_USES = {"none": [0, 1, 2, 3], "except_first": [0, 1, 1, 1], "all": [0, 0, 0, 0]}


@pytest.mark.parametrize("mlp", ["gelu", "geglu"])
@pytest.mark.parametrize("cross", CROSS_USES)
@pytest.mark.parametrize("blocks", BLOCK_USES)
def test_the_first_perceiver_is_its_equations_under_every_sharing(cross, blocks, mlp):
    encoder = replace(ENCODER, cross_attention_sharing=cross, self_attention_sharing=blocks, mlp=mlp)
    model = randomized(ImageClassifier(replace(CONFIG, encoder=encoder)))
    images = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    plain = Plain(model.state_dict(), model.config)
    latents = plain.encode(plain.inputs(images), CROSS_USES[cross], BLOCK_USES[blocks])
    expected = plain.linear("output", plain.norm("pooling_norm", latents.mean(1)))
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)  # positions are in fp32
    assert len(model.encoder.cross_attention) == len(set(CROSS_USES[cross]))
    assert len(model.encoder.self_attention) == len(set(BLOCK_USES[blocks]))


@pytest.mark.parametrize("shape", [(7,), (3, 4, 2), (2, 3, 2, 2)])
def test_images_may_have_any_number_of_axes(shape):
    config = replace(CONFIG, image_shape=shape, num_image_channels=2, pooling_norm=False)
    model = randomized(ImageClassifier(config))
    images = torch.randn(2, 2, *shape, dtype=torch.float64)
    plain = Plain(model.state_dict(), config)
    latents = plain.encode(plain.inputs(images), CROSS_USES["except_first"], BLOCK_USES["all"])
    torch.testing.assert_close(model(images), plain.linear("output", latents.mean(1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_a_decoder_reads_the_latents_with_one_query(residual):
    decoder = DecoderConfig(cross_attention_heads=2, v_channels=8, cross_attention_residual=residual, widening=2.0)
    config = replace(CONFIG, decoder=decoder, pooling_norm=False, num_query_channels=10)
    model = randomized(ImageClassifier(config))
    images = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    plain = Plain(model.state_dict(), config)
    latents = plain.encode(plain.inputs(images), CROSS_USES["except_first"], BLOCK_USES["all"])
    queries = plain.weights["decoder.queries"].expand(2, -1, -1)
    decoded = plain.cross("decoder.cross_attention", queries, latents, 2, residual)
    torch.testing.assert_close(model(images), plain.linear("output", decoded)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "elements"), [(224, 55), (33, 8), (32, 7), (5, 1)])
def test_convolution_makes_each_side_a_quarter(side, elements):
    config = replace(CONFIG, inputs="conv", image_shape=(side, 5), num_feature_channels=4)
    assert config.feature_shape == (elements, 1)
    model = ImageClassifier(config)
    assert model.input_adapter(torch.zeros(1, 3, side, 5)).shape == (1, elements, config.input_channels)


def test_learned_positions_tell_elements_apart():
    config = replace(CONFIG, inputs="learned", num_feature_channels=6, num_position_channels=4)
    model = randomized(ImageClassifier(config))
    encoded = model.input_adapter(torch.ones(2, 3, 6, 5, dtype=torch.float64))
    assert encoded.shape == (2, 30, config.input_channels)
    assert (encoded[0, 0, :6] == encoded[0, 1, :6]).all()
    assert len(encoded[0, :, 6:].unique(dim=0)) == 30


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 1, 6, 5), (2, 3, 6), (3, 6, 5)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"this model takes \(3, 6, 5\)"):
        ImageClassifier(CONFIG)(torch.zeros(shape))


def test_padding_is_not_read():
    encoder = randomized(PerceiverEncoder(ENCODER, 8))
    inputs = torch.randn(2, 12, 8, dtype=torch.float64)
    key_valid = torch.arange(12) < torch.tensor([[12], [7]])
    padded = encoder(inputs, key_valid)
    torch.testing.assert_close(padded[:1], encoder(inputs[:1]))
    torch.testing.assert_close(padded[1:], encoder(inputs[1:, :7]))


def test_sequence_dropout_reads_fewer_elements_in_training_only():
    encoder = randomized(PerceiverEncoder(replace(ENCODER, sequence_dropout=0.5), 8))
    inputs = torch.randn(3, 13, 8, dtype=torch.float64)
    torch.testing.assert_close(encoder(inputs), encoder(inputs))
    lengths = []
    encoder.cross_attention[1].register_forward_pre_hook(lambda _, args: lengths.append(args[1].shape[1]))
    first, second = (encoder.train()(inputs) for _ in range(2))
    assert not torch.allclose(first, second)
    assert lengths == [7] * 4


def test_dropped_elements_are_another_choice_in_each_row_and_keep_their_order_and_padding():
    inputs = torch.arange(40.0).expand(8, -1)[:, :, None]
    kept, valid = drop_elements(inputs, inputs[:, :, 0] % 3 > 0, 0.25)
    assert kept.shape == (8, 30, 1)
    assert (kept[:, :, 0].diff() > 0).all()
    assert len(kept.unique(dim=0)) == 8
    assert (valid == (kept[:, :, 0] % 3 > 0)).all()
    again, none = drop_elements(inputs, None, 0.0)
    assert none is None and (again == inputs).all()


@pytest.mark.parametrize("checkpointing", ["full", "offload"])
def test_activation_checkpointing_changes_no_gradient(checkpointing):
    model = randomized(ImageClassifier(replace(CONFIG, decoder=DecoderConfig(), pooling_norm=False))).train()
    images = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    gradients = []
    for mode in ("none", checkpointing):
        model.activation_checkpointing = mode
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert model.activation_checkpointing == checkpointing
    torch.testing.assert_close(*gradients)


def test_weights_begin_with_the_scale_of_their_part():
    torch.manual_seed(0)
    encoder = replace(ENCODER, latent_channels=128, init_scale=0.1)
    model = ImageClassifier(
        replace(CONFIG, encoder=encoder, decoder=DecoderConfig(init_scale=0.01), pooling_norm=False)
    )
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert parameter.unique().tolist() == [float("norm" in name and name.endswith("weight"))], name
        else:
            assert parameter.std().item() == pytest.approx(0.01 if name.startswith("decoder") else 0.1, rel=0.25), name


def test_bf16_models_take_images_in_fp32():
    model = randomized(ImageClassifier(CONFIG)).float()
    images = torch.randn(2, 3, 6, 5)
    expected = model(images)
    torch.testing.assert_close(model.bfloat16()(images).float(), expected, rtol=0.1, atol=0.1)
