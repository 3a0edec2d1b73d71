"""Perceiver models of transformers through the command, in both directions, against what they compute themselves."""

import json
import math

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PerceiverConfig, pipeline

import perceiver_ar.hf as ours
from perceiver_ar.convert.__main__ import main
from perceiver_ar.processors.flow.__main__ import main as flow_command
from perceiver_ar.processors.flow.flo import read_flo

SMALL = dict(
    num_latents=8,
    d_latents=32,
    num_blocks=2,
    num_self_attends_per_block=2,
    num_cross_attention_heads=1,
    num_self_attention_heads=4,
    num_labels=7,
)
HEADS = {
    "PerceiverForMaskedLM": dict(
        d_model=24, num_cross_attention_heads=4, qk_channels=16, v_channels=32, max_position_embeddings=40
    ),
    "PerceiverForSequenceClassification": dict(
        d_model=24, max_position_embeddings=40, self_attention_widening_factor=3
    ),
    "PerceiverForImageClassificationFourier": dict(use_query_residual=False),
    "PerceiverForImageClassificationLearned": dict(image_size=24, cross_attention_shape_for_attention="q"),
    "PerceiverForImageClassificationConvProcessing": dict(cross_attention_widening_factor=2),
    "PerceiverForOpticalFlow": dict(train_size=[10, 12]),
}
MULTIMODAL = "PerceiverForMultimodalAutoencoding"
_IMAGENET = dict(num_latents=512, d_latents=1024, num_blocks=8, num_self_attends_per_block=6, num_labels=1000)
_IMAGENET["num_self_attention_heads"] = 8
PUBLISHED = {
    "PerceiverForMaskedLM": (201_108_230, dict(PerceiverConfig().to_dict(), qk_channels=256, v_channels=1280)),
    "PerceiverForImageClassificationFourier": (48_440_627, _IMAGENET),
    "PerceiverForImageClassificationLearned": (62_255_848, _IMAGENET | dict(image_size=224)),
    "PerceiverForImageClassificationConvProcessing": (48_646_522, _IMAGENET),
    "PerceiverForOpticalFlow": (
        41_057_134,
        dict(num_latents=2048, d_latents=512, num_blocks=1, num_self_attends_per_block=24, num_self_attention_heads=16),
    ),
}
"""Parameters and values of the configuration."""
CLASSES = {
    "PerceiverForMaskedLM": ours.PerceiverIOForMaskedLM,
    "PerceiverForSequenceClassification": ours.PerceiverIOForSequenceClassification,
    "PerceiverForImageClassificationFourier": ours.PerceiverIOForImageClassification,
    "PerceiverForImageClassificationLearned": ours.PerceiverIOForImageClassification,
    "PerceiverForImageClassificationConvProcessing": ours.PerceiverIOForImageClassification,
    "PerceiverForOpticalFlow": ours.PerceiverIOForOpticalFlow,
}


def randomized(model):
    """All weights drawn, also norms, biases and the statistics of batch norms, so that each of them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                # Larger matrices would multiply rounding errors from layer to layer.
                scale = 0.1 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
                tensor.copy_(mean + scale * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def inputs_of(head, config, side, rows):
    generator = torch.Generator().manual_seed(2)
    if head in ("PerceiverForMaskedLM", "PerceiverForSequenceClassification"):
        ids = torch.randint(6, config.vocab_size, (rows, 30), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, 20:] = 0
        return dict(input_ids=ids, attention_mask=mask)
    if head == "PerceiverForOpticalFlow":
        return dict(patches=torch.randn(rows, 2, 27, *config.train_size, generator=generator))
    return dict(pixel_values=torch.randn(rows, 3, side, side, generator=generator))


def outputs(model, inputs):
    with torch.inference_mode():
        logits = model(**inputs).logits
    # transformers' masked language models predict as many tokens as there are positions.
    return logits[:, : inputs["input_ids"].shape[1]] if "input_ids" in inputs and logits.ndim == 3 else logits


def theirs(head, values, folder, side=24):
    """A model of transformers, also in `folder`."""
    model = randomized(getattr(transformers, head)(PerceiverConfig(**SMALL | values)))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(size=side, crop_size=256)))
    return model


def assert_equal(found, expected):
    """Within 1e-5 of the outputs' size."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("head", HEADS)
def test_there_and_back(head, tmp_path):
    check_there_and_back(head, HEADS[head], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("head", PUBLISHED)
def test_published_sizes(head, tmp_path):
    parameters, values = PUBLISHED[head]
    model = check_there_and_back(head, values, tmp_path, side=224, rows=1)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def check_there_and_back(head, values, folder, side=24, rows=2):
    """The model of transformers and ours of it compute the same; one made of ours has the same weights."""
    model = theirs(head, values, folder / "theirs", side)
    inputs = inputs_of(head, model.config, side, rows)
    named = {("inputs" if name == "patches" else name): value for name, value in inputs.items()}
    expected = outputs(model, named)
    main([str(folder / "theirs"), str(folder / "ours")])
    assert_equal(outputs(CLASSES[head].from_pretrained(folder / "ours").eval(), inputs), expected)
    check_weights_of_the_way_back(head, model, folder)
    return model


def check_weights_of_the_way_back(head, model, folder):
    main([str(folder / "ours"), str(folder / "back"), "--to", "transformers"])
    back = getattr(transformers, head).from_pretrained(folder / "back").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor)


def test_multimodal_there_and_back(tmp_path):
    video = dict(num_frames=2, image_size=8, output_shape=[1, 2, 8, 8])
    sound = dict(audio_samples_per_frame=32, samples_per_patch=16)
    check_multimodal(dict(**video, **sound, output_num_channels=16, _label_trainable_num_channels=24), tmp_path)


@pytest.mark.slow
def test_multimodal_published_size(tmp_path):
    values = dict(num_latents=784, d_latents=512, num_blocks=1, num_self_attends_per_block=8, num_labels=700)
    values |= dict(num_self_attention_heads=8, image_size=224, output_shape=[1, 16, 224, 224])
    model = check_multimodal(values, tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_858_855


def check_multimodal(values, folder):
    """As `check_there_and_back`, at some points of a clip."""
    model = theirs(MULTIMODAL, values, folder / "theirs")
    config = model.config
    _, frames, height, width = config.output_shape
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(1, frames, 3, height, width, generator=generator)
    audio = torch.randn(1, frames * config.audio_samples_per_frame, generator=generator)
    points = dict(image=torch.tensor([0, 5, 127]), audio=torch.tensor([3, 1]), label=None)
    clip = dict(image=video, audio=audio[..., None], label=torch.zeros(1, config.num_labels))
    with torch.inference_mode():
        expected = model(clip, subsampled_output_points=points).logits
    main([str(folder / "theirs"), str(folder / "ours")])
    autoencoder = ours.PerceiverIOForMultimodalAutoencoding.from_pretrained(folder / "ours").eval()
    with torch.inference_mode():
        found = autoencoder(video, audio, video_points=points["image"][None], audio_points=points["audio"][None])
    assert_equal(found.video, expected["image"])
    assert_equal(found.audio.flatten(1), expected["audio"])
    assert_equal(found.logits, expected["label"])
    check_weights_of_the_way_back(MULTIMODAL, model, folder)
    return model


def test_fill_mask(tmp_path):
    model = theirs("PerceiverForMaskedLM", HEADS["PerceiverForMaskedLM"], tmp_path / "theirs")
    tokenizer = transformers.PerceiverTokenizer(model_max_length=40)
    tokenizer.save_pretrained(tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    text = "To b[MASK] or not é[MASK]"
    expected = pipeline("fill-mask", model=model, tokenizer=tokenizer)(text, top_k=3)
    found = pipeline("fill-mask", model=str(tmp_path / "ours"))(text, top_k=3)
    for ours_of_mask, theirs_of_mask in zip(found, expected, strict=True):
        assert [guess["token"] for guess in ours_of_mask] == [guess["token"] for guess in theirs_of_mask]
        assert ours_of_mask[0]["score"] == pytest.approx(theirs_of_mask[0]["score"], rel=1e-4)


def test_text_classification(tmp_path):
    labels = dict(num_labels=2, id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    values = HEADS["PerceiverForSequenceClassification"] | labels
    model = theirs("PerceiverForSequenceClassification", values, tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    texts = ["a short one", "rather a longer one [SEP]"]
    tokenizer = transformers.PerceiverTokenizer(model_max_length=40)
    expected = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts[0])
    found = pipeline("text-classification", model=str(tmp_path / "ours"))(texts, batch_size=2)
    assert found[0]["label"] == expected[0]["label"] in ("BAD", "GOOD")
    assert found[0]["score"] == pytest.approx(expected[0]["score"], rel=1e-4)


def test_image_classification(tmp_path):
    head = "PerceiverForImageClassificationConvProcessing"
    model = theirs(head, dict(id2label={i: f"class {i}" for i in range(7)}), tmp_path / "theirs")
    processor = transformers.PerceiverImageProcessorPil(
        size=dict(height=24, width=24), crop_size=dict(height=30, width=30), image_mean=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    pixels = torch.linspace(0, 255, 60 * 45 * 3).reshape(60, 45, 3).sin().mul(120).add(128).byte().numpy()
    image = Image.fromarray(pixels)
    expected = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=7)
    found = pipeline("image-classification", model=str(tmp_path / "ours"))(image, top_k=7)
    theirs_by_label = {guess["label"]: guess["score"] for guess in expected}
    # Pillow rounds resized pixels to bytes.
    assert {guess["label"]: guess["score"] for guess in found} == pytest.approx(theirs_by_label, abs=1e-2)
    main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "transformers"])
    again = pipeline("image-classification", model=str(tmp_path / "back"))(image, top_k=7)
    assert {guess["label"]: guess["score"] for guess in again} == pytest.approx(theirs_by_label, rel=1e-4)


def test_optical_flow(tmp_path):
    model = theirs("PerceiverForOpticalFlow", HEADS["PerceiverForOpticalFlow"], tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(256, (2, 10, 12, 3), dtype=torch.uint8, generator=generator)
    estimate = pipeline("optical-flow", model=str(tmp_path / "ours"))
    # One tile, as the paper has it: pixels from -1 to 1, their neighbourhoods by row and column, 20 pixels for 1.
    scaled = torch.nn.functional.pad(frames.movedim(-1, 1) / 255 * 2 - 1, (1, 1, 1, 1))
    patches = torch.cat(
        [scaled[:, :, row : row + 10, column : column + 12] for row in range(3) for column in range(3)], 1
    )
    expected = 20 * outputs(model, dict(inputs=patches[None]))[0]
    assert_equal(estimate(tuple(frames.numpy()))["flow"], expected)
    for name, frame in zip(("0.png", "1.png"), frames.numpy(), strict=True):
        Image.fromarray(frame).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("0.png", "1.png", "theirs", "flow")]
    flow_command([*files[:2], "--model", files[2], "--flo", files[3]])
    assert_equal(torch.from_numpy(read_flo(tmp_path / "flow" / "frame_0001.flo")), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["PerceiverModel"]}, "config.json: is a PerceiverModel; what can be read are PerceiverFor"),
        ({"architectures": None}, "config.json: is a PerceiverModel"),
        ({"architectures": 3}, "config.json: is a 3; what can be read are "),
        ({"model_type": []}, "config.json: is a model of type [], not a Perceiver"),
        ({"num_latents": 1.5}, "config.json: encoder: num_latents cannot be 1.5"),
        ({"initializer_range": math.nan}, "config.json: init_scale (nan) must be positive"),
        ({"id2label": 3}, "config.json: id2label must be an object, not 3"),
        ({"hidden_act": "relu"}, "config.json: hidden_act must be 'gelu', not 'relu'"),
        ({"d_latents": "many"}, "config.json: d_latents must be a number, not 'many'"),
        ({"qk_channels": 16}, "config.json: v_channels (16) must be d_latents (32)"),
        ({"num_self_attends_per_block": 3}, "weight encoder.self_attention.0.2.norm.weight is absent"),
        ({"d_model": 25}, "weight input_adapter.tokens.weight is (262, 24), by the model's configuration (262, 25)"),
    ],
)
def test_other_models_are_refused(fields, message, tmp_path):
    head = "PerceiverForSequenceClassification"
    theirs(head, HEADS[head], tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(ValueError) as error:
        main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_damaged_parts_are_refused(tmp_path):
    head, folder = "PerceiverForImageClassificationLearned", tmp_path / "theirs"
    theirs(head, HEADS[head], folder)

    def check(message):
        with pytest.raises(ValueError) as error:
            main([str(folder), str(tmp_path / "ours")])
        assert message in str(error.value) and "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["theirs"]

    (folder / "preprocessor_config.json").write_text('{"image_mean": "gray"}')
    check("preprocessor_config.json: image_mean must be numbers, not 'gray'")
    (folder / "preprocessor_config.json").write_text('{"crop_size": 0}')
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.int() for name, weight in weights.items()}, folder / "model.safetensors")
    check("is of torch.int32, not of floating point")
    (folder / "config.json").write_text("[" * 100_000)
    check("config.json: is not JSON (maximum recursion depth exceeded")


def test_what_transformers_does_not_have(tmp_path):
    config = ours.PerceiverMaskedLMHFConfig(
        vocab_size=262,
        max_seq_len=20,
        num_input_channels=16,
        encoder=dict(
            num_latents=4,
            latent_channels=16,
            self_attention_heads=2,
            num_cross_attentions=2,
            num_blocks=2,
            layers_per_block=1,
        ),
    )
    ours.PerceiverIOForMaskedLM(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError) as error:
        main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "transformers"])
    assert "no PerceiverForMaskedLM of transformers is the same model" in str(error.value)
    assert "encoder.num_cross_attentions is 2 here, 1 there" in str(error.value)
    assert "decoder.cross_attention_heads is 1 here, 8 there" in str(error.value)
    with pytest.raises(ValueError, match="is a model of this package already"):
        main([str(tmp_path / "ours"), str(tmp_path / "theirs")])
    assert not (tmp_path / "theirs").exists()
