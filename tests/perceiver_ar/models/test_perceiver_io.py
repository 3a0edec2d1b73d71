"""Perceiver IO for text and optical flow: queries, padding, tied outputs, and what is refused."""

from dataclasses import replace

import pytest
import torch

from perceiver_ar.blocks.cross_entropy import chunked_cross_entropy
from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.models.perceiver_config import (
    DecoderConfig,
    EncoderConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)
from perceiver_ar.models.text import MaskedLM, TextClassifier

ENCODER = EncoderConfig(num_latents=6, latent_channels=16, self_attention_heads=4, num_blocks=2, layers_per_block=1)
MASKED_LM = MaskedLMConfig(
    vocab_size=50,
    max_seq_len=12,
    num_input_channels=8,
    encoder=ENCODER,
    decoder=DecoderConfig(cross_attention_residual=False),
)
CLASSIFIER = TextClassifierConfig(vocab_size=50, max_seq_len=12, num_input_channels=8, num_classes=3, encoder=ENCODER)
FLOW = OpticalFlowConfig(
    image_shape=(6, 4), num_patch_channels=5, num_feature_channels=8, num_frequency_bands=2, encoder=ENCODER
)


def made(model):
    """In float64, with weights large enough that everything matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model.eval()


@pytest.fixture
def ids():
    return torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_class", [MaskedLM, TextClassifier])
def test_padding_changes_nothing(model_class, ids):
    model = made(model_class(MASKED_LM if model_class is MaskedLM else CLASSIFIER))
    key_valid = torch.ones_like(ids, dtype=torch.bool)
    key_valid[:, 6:] = False
    padded, short = model(ids, key_valid), model(ids[:, :6])
    torch.testing.assert_close(padded[:, :6] if model_class is MaskedLM else padded, short)


def test_every_position_has_a_query_of_its_own(ids):
    model = made(MaskedLM(MASKED_LM))
    logits = model(ids)
    assert logits.shape == (3, 9, 50)
    with torch.no_grad():
        model.decoder.queries[4] += 1
    changed = (model(ids) != logits).any(-1)
    assert changed[:, 4].all() and changed.sum() == 3


def test_chosen_positions_are_decoded_alone(ids):
    model = made(MaskedLM(MASKED_LM))
    hidden = model.hidden(ids)
    positions = torch.tensor([[0, 8], [3, 3], [7, 2]])
    chosen = model.hidden(ids, positions=positions)
    torch.testing.assert_close(chosen, hidden.gather(1, positions[:, :, None].expand(-1, -1, 8)))


@pytest.mark.parametrize("tied", [True, False])
def test_loss_of_chunks_is_that_of_the_logits(tied, ids):
    config = MASKED_LM if tied else replace(MASKED_LM, tied_output=False, num_query_channels=6)
    model = made(MaskedLM(config))
    assert ("unembed.weight" in model.state_dict()) is not tied
    loss = chunked_cross_entropy(
        model.hidden(ids).flatten(0, 1), model.output_weight, model.output_bias, ids.flatten(), z_loss=0, chunk_tokens=4
    )
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_words_and_their_order_decide_a_class(ids):
    model = made(TextClassifier(CLASSIFIER))
    assert model(ids).shape == (3, 3)
    assert not torch.allclose(model(ids), model(ids.flip(1)))


@pytest.mark.parametrize("length", [0, 13])
def test_too_many_and_no_tokens_are_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens: this model takes 1 to 12"):
        MaskedLM(MASKED_LM)(torch.zeros(1, length, dtype=torch.long))


def test_flow_of_a_pixel_comes_from_its_own_query_and_the_latents():
    model = made(OpticalFlow(FLOW))
    patches = torch.randn(2, 2, 5, 6, 4, dtype=torch.float64)
    flow = model(patches)
    assert flow.shape == (2, 6, 4, 2)
    inputs = model.input_adapter(patches)
    latents = model.encoder(inputs)
    pixel = 3 * 4 + 1  # row 3, column 1
    alone = model.output(model.decoder(latents, inputs[:, pixel : pixel + 1])) / 100
    torch.testing.assert_close(flow[:, 3, 1], alone[:, 0])
    torch.testing.assert_close(made(OpticalFlow(replace(FLOW, rescale_factor=1.0)))(patches), flow * 100)


def test_flow_reads_both_frames_in_their_order():
    model = made(OpticalFlow(FLOW))
    patches = torch.randn(1, 2, 5, 6, 4, dtype=torch.float64)
    features = model.input_adapter(patches)[0, :, :8].unflatten(0, (6, 4))
    weight, bias = model.input_adapter.patches.weight, model.input_adapter.patches.bias
    expected = weight[:, :5] @ patches[0, 0, :, 2, 3] + weight[:, 5:] @ patches[0, 1, :, 2, 3] + bias
    torch.testing.assert_close(features[2, 3], expected)


@pytest.mark.parametrize("shape", [(1, 2, 5, 4, 6), (1, 1, 5, 6, 4), (1, 2, 27, 6, 4)])
def test_patches_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"this model takes \(2, 5, 6, 4\)"):
        OpticalFlow(FLOW)(torch.zeros(shape))
