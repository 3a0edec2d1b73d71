"""Perceiver IO models of krasserm/perceiver-io through the command, against what they were recorded to compute."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

import perceiver_ar.hf as ours
from perceiver_ar.convert.__main__ import main

CLASSES = {
    "io_mlm": ours.PerceiverIOForMaskedLM,
    "io_mlm_untied": ours.PerceiverIOForMaskedLM,
    "io_text_classifier": ours.PerceiverIOForSequenceClassification,
    "io_image": ours.PerceiverIOForImageClassification,
    "io_flow": ours.PerceiverIOForOpticalFlow,
}


def recorded_inputs(recording):
    first, padding = recording.tensors["inputs.0"], recording.tensors.get("inputs.1")
    if recording.name == "io_image":
        return dict(pixel_values=first.movedim(-1, 1))  # its channels are last
    if recording.name == "io_flow":
        return dict(patches=first)
    return dict(input_ids=first, attention_mask=None if padding is None else (~padding).long())


@pytest.mark.parametrize("form", ["safetensors", "bin", "lightning"])
def test_outputs(form, task_recording, write_folder, lightning, tmp_path):
    recording = task_recording
    if form == "lightning" and not recording.classes:
        pytest.skip("it has no Lightning class for this one")
    source = lightning[recording.name] if form == "lightning" else write_folder(recording, form)
    main([str(source), str(tmp_path / "ours")])
    model = CLASSES[recording.name].from_pretrained(tmp_path / "ours").eval()
    with torch.inference_mode():
        logits = model(**recorded_inputs(recording)).logits
    expected = recording.tensors["output"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_masked_language_model_without_its_tokenizer_reads_bytes(lightning, tmp_path, capsys):
    main([str(lightning["io_mlm"]), str(tmp_path / "ours")])
    assert capsys.readouterr().err == ""
    guesses = pipeline("fill-mask", model=str(tmp_path / "ours"))("to [MASK]e", top_k=2)
    assert len(guesses) == 2 and all(guess["sequence"].startswith("to ") for guess in guesses)


def test_labels_and_images(write_folder, recording_named, tmp_path, capsys):
    labels = dict(id2label={i: i for i in range(7)}, label2id={i: i for i in range(7)})
    folder = write_folder(recording_named("io_image"), **labels)
    processor = dict(do_resize=False, do_center_crop=False, image_mean=0.4, image_std=0.5, channels_last=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    main([str(folder), str(tmp_path / "ours")])
    assert capsys.readouterr().err == ""
    images = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    pixels = images(Image.new("RGB", (10, 12), (255, 0, 0)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 12, 10)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.2, -0.8, -0.8]))
    guesses = pipeline("image-classification", model=str(tmp_path / "ours"))(Image.new("RGB", (10, 12)), top_k=7)
    assert {guess["label"] for guess in guesses} == {str(i) for i in range(7)}


def test_labels_of_other_classes_are_left_out(write_folder, recording_named, tmp_path):
    """They are those that transformers writes of a configuration that names none."""
    folder = write_folder(recording_named("io_image"), id2label={0: "LABEL_0", 1: "LABEL_1"})
    main([str(folder), str(tmp_path / "ours")])
    assert len(CLASSES["io_image"].from_pretrained(tmp_path / "ours").config.id2label) == 7


def test_a_lightning_checkpoint_does_not_say_how_images_are_prepared(lightning, tmp_path, capsys):
    main([str(lightning["io_image"]), str(tmp_path / "ours")])
    assert "does not say how its images were normalised" in capsys.readouterr().err


def test_hyper_parameters_that_an_earlier_version_did_not_have(write_folder, recording_named, tmp_path):
    recording = recording_named("io_mlm_untied")
    for name in ("num_cross_attention_layers", "first_cross_attention_layer_shared", "init_scale"):
        del recording.hparams["encoder"][name]
    main([str(write_folder(recording)), str(tmp_path / "ours")])
    model = CLASSES["io_mlm_untied"].from_pretrained(tmp_path / "ours").eval()
    logits = model(**recorded_inputs(recording)).logits
    torch.testing.assert_close(logits, recording.tensors["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("encoder", None, "encoder must be hyper-parameters, not None"),
        ("decoder", {"num_output_queries": 2}, "decoder.num_output_queries must be 1, not 2"),
        ("decoder", {"num_classes": "many"}, "decoder.num_classes must be a number, not 'many'"),
        ("encoder", {"num_self_attention_heads": 3}, "cannot be divided among 3 heads"),
        ("encoder", {"num_self_attention_blocks": 2}, "num_cross_attentions (3) must be at most num_blocks (2)"),
        (
            "encoder",
            {"vocab_size": 300},
            "weight input_adapter.tokens.weight is (262, 24), by the model's configuration",
        ),
    ],
)
def test_bad_hyper_parameters_are_one_line(part, fields, message, write_folder, recording_named, tmp_path):
    recording = recording_named("io_text_classifier")
    recording.hparams[part] = fields and recording.hparams[part] | fields
    with pytest.raises(ValueError) as error:
        main([str(write_folder(recording)), str(tmp_path / "ours")])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()
