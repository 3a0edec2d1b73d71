"""Perceiver IO in `transformers`: saved, loaded, with losses, and in pipelines."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from perceiver_ar.hf import (
    PerceiverIOImageProcessor,
    PerceiverTextClassifierHFConfig,
    byte_tokenizer,
    encoder_tokenizer,
)
from perceiver_ar.processors.flow.features import FLOW_SCALE, frame_patches
from tests.perceiver_ar.hf.perceiver_models import CONFIGS, CONTEXT, LABELS, TEXT, build, inputs

AUTO = {
    "masked_lm": AutoModelForMaskedLM,
    "text_classifier": AutoModelForSequenceClassification,
    "image_classifier": AutoModelForImageClassification,
    "conv_classifier": AutoModelForImageClassification,
    "optical_flow": AutoModel,
    "multimodal": AutoModel,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_model_comes_back_by_its_auto_class(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(3)  # running statistics are part of a model
        for parameter in model.parameters():
            parameter.add_(0.1)  # so are norms and biases
    model.save_pretrained(tmp_path)
    loaded, report = AUTO[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(report.values()), report
    assert AutoConfig.from_pretrained(tmp_path).perceiver == CONFIGS[kind]
    assert all(name.startswith("model.") for name in loaded.state_dict())
    torch.testing.assert_close(loaded(**inputs(kind)).logits, model(**inputs(kind)).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["masked_lm", "text_classifier"])
def test_padding_changes_nothing(kind: str) -> None:
    model, ids = build(kind), inputs(kind)["input_ids"]
    padded = torch.cat([ids, torch.zeros(2, 5, dtype=torch.int64)], dim=1)
    mask = (torch.arange(15) < 10).int().expand(2, -1)
    logits = model(padded, attention_mask=mask).logits
    expected = model(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits[:, :10] if kind == "masked_lm" else logits, expected)


def test_losses_are_those_of_the_labels() -> None:
    cross_entropy = torch.nn.functional.cross_entropy
    ids = inputs("masked_lm")["input_ids"]
    masked = build("masked_lm")(ids, labels=torch.where(ids % 3 == 0, ids, -100))
    chosen = ids % 3 == 0
    torch.testing.assert_close(masked.loss, cross_entropy(masked.logits[chosen], ids[chosen]))
    for kind in ("text_classifier", "image_classifier"):
        output = build(kind)(**inputs(kind), labels=torch.tensor([2, 0]))
        torch.testing.assert_close(output.loss, cross_entropy(output.logits, torch.tensor([2, 0])))


@pytest.mark.parametrize("kind", ["masked_lm", "text_classifier", "optical_flow"])
def test_trainer_accumulates_gradients_of_the_mean_loss(kind: str, tmp_path: Path) -> None:
    labels = {"masked_lm": torch.arange(10), "text_classifier": torch.tensor(2), "optical_flow": torch.ones(8, 12, 2)}
    rows = [{name: rows[i] for name, rows in inputs(kind, 4).items()} | {"labels": labels[kind]} for i in range(4)]
    norms = []
    for accumulation in (1, 4):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        )
        trainer = Trainer(build(kind), arguments, train_dataset=rows)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_the_loss_of_flow_is_the_end_point_error_where_it_is_known() -> None:
    model = build("optical_flow")
    flow = FLOW_SCALE * model(**inputs("optical_flow")).logits
    labels = flow + torch.tensor([3.0, 4.0])
    labels[:, :4] = torch.nan
    assert model(**inputs("optical_flow"), labels=labels).loss.item() == pytest.approx(5)


def test_a_multimodal_model_decodes_points_or_all_of_a_clip() -> None:
    model = build("multimodal")
    whole = model(**inputs("multimodal"))
    assert (whole.video.shape, whole.audio.shape, whole.logits.shape) == ((2, 2, 3, 4, 4), (2, 8), (2, 3))
    some = model(**inputs("multimodal"), video_points=torch.tensor([[5], [5]]), audio_points=torch.tensor([[1], [1]]))
    torch.testing.assert_close(some.video[:, 0], whole.video[:, 0, :, 1, 1])
    torch.testing.assert_close(some.audio[:, 0], whole.audio[:, 4:])


def test_another_number_of_labels_makes_another_head(tmp_path: Path) -> None:
    build("text_classifier").save_pretrained(tmp_path)
    torch.manual_seed(1)
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert tuned(**inputs("text_classifier")).logits.shape == (2, 5)
    assert 0 < tuned.model.output.weight.abs().max() < 10 and not tuned.model.output.bias.any()
    assert torch.equal(tuned.model.encoder.latents, build("text_classifier").model.encoder.latents)


def test_labels_lie_in_the_configuration(tmp_path: Path) -> None:
    build("image_classifier").config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["id2label"] == {"0": "circle", "1": "square", "2": "star"} and "num_classes" not in written
    assert AutoConfig.from_pretrained(tmp_path).label2id == {"circle": 0, "square": 1, "star": 2}


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(num_classes=3, id2label={0: "a", 1: "b"}), "id2label names 2 classes, num_classes is 3"),
        (dict(encoder={"latents": 3}), "encoder: latents: no field of EncoderConfig"),
        (dict(encoder={"num_latents": 0}), r"encoder: num_latents \(0\) must be at least 1"),
        (dict(encoder={"num_latents": True}), "encoder: num_latents cannot be True"),
        (dict(encoder={"mlp": "relu"}), "encoder: mlp cannot be 'relu'"),
        (dict(decoder=None), "decoder cannot be None"),
        (dict(encoder=[3]), r"encoder cannot be \(3,\)"),
        (dict(max_seq_len=2.5), "max_seq_len cannot be 2.5"),
    ],
)
def test_configurations_that_make_no_model_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerceiverTextClassifierHFConfig(**TEXT | values)


def test_fill_mask_and_text_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "abc [MASK] def"
    build("masked_lm").save_pretrained(tmp_path)
    encoder_tokenizer(byte_tokenizer(CONTEXT), mask_id=3).save_pretrained(tmp_path)
    fill = pipeline("fill-mask", str(tmp_path))
    first = fill(text, top_k=1)[0]
    ids = torch.tensor([[*(byte + 6 for byte in b"abc "), 3, *(byte + 6 for byte in b" def")]])
    assert first["token"] == build("masked_lm")(ids).logits[0, 4].argmax().item()
    assert fill([text, text + " and more"], batch_size=2)[0][0]["token"] == first["token"]

    build("text_classifier").save_pretrained(tmp_path)
    encoder_tokenizer(byte_tokenizer(CONTEXT)).save_pretrained(tmp_path)
    classify = pipeline("text-classification", str(tmp_path))
    together = classify(["nice", "a longer [MASK] text" * 3], batch_size=2, truncation=True)
    assert [found["label"] in LABELS for found in together] == [True, True]
    assert together[0]["score"] == pytest.approx(classify("nice")[0]["score"])
    with pytest.raises(ValueError, match="60 tokens: this model takes 1 to 24"):
        classify("a longer [MASK] text" * 3)
    assert "not supported" not in caplog.text


def test_image_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build("image_classifier").save_pretrained(tmp_path)
    processor = PerceiverIOImageProcessor((8, 12), num_channels=1, crop_fraction=1.0, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 12), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    classify = pipeline("image-classification", str(tmp_path))
    together = classify([*images, images[0].convert("RGB").resize((240, 161))], batch_size=3)
    logits = build("image_classifier")(torch.from_numpy(pixels / 127.5 - 1)[:, None].float()).logits
    expected = [LABELS[best] for best in logits.argmax(-1)]
    assert [found[0]["label"] for found in together[:2]] == expected
    assert "not supported" not in caplog.text


def test_an_image_processor_comes_back_as_it_was(tmp_path: Path) -> None:
    processor = PerceiverIOImageProcessor((8, 12), num_channels=4, image_mean=[0.5] * 4, image_std=[0.25] * 4)
    processor.save_pretrained(tmp_path)
    build("image_classifier").config.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = torch.arange(4 * 8 * 12, dtype=torch.uint8).view(4, 8, 12)
    assert torch.equal(loaded(image).pixel_values[0], processor([image]).pixel_values[0])
    with pytest.raises(ValueError, match="3 channels, the model reads 4"):
        loaded(image[:3])


def test_optical_flow(tmp_path: Path) -> None:
    build("optical_flow").save_pretrained(tmp_path)
    estimate = pipeline("optical-flow", str(tmp_path))
    first, second = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    patches = frame_patches(torch.from_numpy(np.stack([first, second])))[None]
    expected = FLOW_SCALE * build("optical_flow")(patches).logits[0]
    torch.testing.assert_close(estimate((first, Image.fromarray(second)))["flow"], expected)
