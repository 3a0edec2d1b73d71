"""The `perceiver_io` and `paper` presets, and Perceiver IO, compute what the recorded implementations computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perceiver_ar import PerceiverAR, PerceiverARCache, PerceiverARConfig
from perceiver_ar.convert.names import renamed
from perceiver_ar.convert.perceiver_io import causal_sequence_model_config, causal_sequence_model_weights, pair_halves
from perceiver_ar.convert.perceiver_io_tasks import (
    COMPUTED_ON_USE,
    IMAGE_CLASSIFIER,
    MASKED_LM,
    perceiver_io_task_config,
    perceiver_io_task_names,
)
from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.text import MaskedLM

FIXTURES = Path(__file__).parents[2] / "fixtures"
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def assert_same_logits(logits, recorded):
    """Rounding grows with the largest logits, by which the recorded ones differ from float64 as much as ours."""
    torch.testing.assert_close(logits, recorded, rtol=0, atol=2e-6 * recorded.abs().max().item())


class Recording:
    def __init__(self, stem: Path) -> None:
        self.values = json.loads(stem.with_suffix(".json").read_text())
        self.tensors = load_file(stem.with_suffix(".safetensors"))

    def group(self, prefix, source=None):
        source = self.tensors if source is None else source
        return {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}


@pytest.fixture(params=["csm_default", "csm_audio"])
def recording(request):
    return Recording(FIXTURES / "perceiver-io-0.11.1" / request.param)


@pytest.fixture
def model(recording):
    config = causal_sequence_model_config(recording.group("hparams.", recording.values))
    model = PerceiverAR(config)
    model.load_state_dict(causal_sequence_model_weights(recording.group("state_dict."), config))
    return model.eval()


def inputs(recording):
    padding = recording.tensors.get("pad_mask")
    return recording.tensors["input_ids"], recording.values["prefix_len"], None if padding is None else ~padding


def test_perceiver_io_logits_and_hidden_states(recording, model):
    ids, prefix_length, key_valid = inputs(recording)
    output = model(ids, prefix_length, key_valid=key_valid)
    assert_same_logits(output.logits, recording.tensors["logits"])
    torch.testing.assert_close(output.hidden, recording.tensors["last_hidden_state"], **TOLERANCE)


def test_perceiver_io_loss_and_gradients(recording, model):
    ids, prefix_length, key_valid = inputs(recording)
    labels = recording.tensors["labels"]
    loss = model(ids, prefix_length, key_valid=key_valid, targets=labels).loss.total / (labels != -100).sum()
    torch.testing.assert_close(loss, recording.tensors["loss"], **TOLERANCE)
    loss.backward()
    expected = causal_sequence_model_weights(recording.group("grads."), model.config)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")


def test_perceiver_io_cached_logits_token_by_token(recording, model):
    ids, prefix_length, key_valid = inputs(recording)
    cache = PerceiverARCache(model.config)
    logits = []
    with torch.inference_mode():
        for stop in range(prefix_length + 1, ids.shape[1] + 1):
            new = slice(cache.tokens_seen, stop)
            valid = None if key_valid is None else key_valid[:, new]
            logits.append(model(ids[:, new], prefix_length, key_valid=valid, cache=cache).logits)
    assert_same_logits(torch.cat(logits, 1), recording.tensors["cached_logits"])


def test_perceiver_io_logits_under_the_recorded_prefix_dropout(recording, model):
    ids, prefix_length, key_valid = inputs(recording)
    keep_mask = recording.tensors["train_mode.keep_mask"]
    keep = torch.stack([row.nonzero().flatten() for row in keep_mask])
    logits = model.train()(ids, prefix_length, key_valid=key_valid, prefix_keep=keep).logits
    torch.testing.assert_close(logits, recording.tensors["train_mode.logits"], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "model_type", "model_class"),
    [("io_image", IMAGE_CLASSIFIER, ImageClassifier), ("io_mlm", MASKED_LM, MaskedLM)],
)
def test_perceiver_io_task_models(name, model_type, model_class):
    recording = Recording(FIXTURES / "perceiver-io-0.11.1" / name)
    values = recording.group("config.", recording.values)
    parts = {part: recording.group(f"{part}.", values) for part in ("encoder", "decoder")}
    config = perceiver_io_task_config(model_type, values | parts)
    names = perceiver_io_task_names(config)
    model = model_class(config).eval()
    model.load_state_dict(renamed(recording.group("state_dict."), names, ignored=COMPUTED_ON_USE))
    inputs, padding = recording.tensors["inputs.0"], recording.tensors.get("inputs.1")
    output = model(inputs.movedim(-1, 1)) if padding is None else model(inputs, ~padding)
    assert_same_logits(output, recording.tensors["output"])
    output.square().mean().backward()
    expected = renamed(recording.group("grads_of_mean_square."), names)
    scale = max(gradient.abs().max() for gradient in expected.values()).item()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=lambda m, n=name: n + m)


def test_paper_logits():
    recording = Recording(FIXTURES / "perceiver-ar-jax" / "jax_rotary")
    arguments = recording.values
    config = PerceiverARConfig.preset(
        "paper",
        vocab_size=arguments["num_classes"],
        max_seq_len=arguments["max_context_length"],
        max_latents=arguments["z_index_dim"],
        num_channels=arguments["num_z_channels"],
        num_input_channels=arguments["input_embed_dim"],
        num_heads=arguments["num_transformer_heads"],
        num_layers=arguments["num_transformers_per_block"],
        rotary_base=float(arguments["max_wavelength"]),
        rotary_fraction=arguments["fraction_to_rotate"],
    )
    model = PerceiverAR(config)
    model.load_state_dict(haiku_weights(recording.group("params/perceiver_ar/"), config))
    ids = recording.tensors["input_ids"].long()
    logits = model.eval()(ids, config.max_seq_len - config.max_latents, key_valid=ids != 0).logits
    torch.testing.assert_close(logits, recording.tensors["logits"], **TOLERANCE)


def haiku_weights(params, config):
    """Haiku's numbered module names -> ours; its linear weights are (in, out)."""
    layers = {"~/cross_attention": "cross_attention"}
    for i in range(config.num_layers):
        layers["~/self_attention" + (f"_{i}" if i else "")] = f"self_attention.{i}"
    modules = {
        "~/embed": "embed.tokens",
        "~/linear": "latent_projection",
        "layer_norm": "output_norm",
        "~/logits": "unembed",
    }
    for source, target in layers.items():
        projections = zip(("linear", "linear_1", "linear_2", "linear_3"), "qkvo", strict=True)
        modules |= {f"{source}/attention/{linear}": f"{target}.attention.{x}_proj" for linear, x in projections}
        modules |= {f"{source}/dense/linear": f"{target}.mlp.up", f"{source}/dense/linear_1": f"{target}.mlp.down"}
        norms = ("q_norm", "kv_norm", "mlp_norm") if source == "~/cross_attention" else ("norm", "mlp_norm")
        modules |= {f"{source}/layer_norm" + (f"_{i}" if i else ""): f"{target}.{norm}" for i, norm in enumerate(norms)}
    weights = {}
    for path, tensor in params.items():
        module, _, leaf = path.rpartition("/")
        name = f"{modules[module]}.{'bias' if leaf in ('b', 'offset') else 'weight'}"
        tensor = tensor.T if leaf == "w" else tensor
        if ".q_proj" in name or ".k_proj" in name:
            tensor = pair_halves(tensor, config.num_heads, config.rotary_fraction)
        weights["output_bias" if name == "unembed.bias" else name] = tensor
    return weights
