"""Runs of all tasks that do not continue text: from a checkpoint to a Hugging Face folder, and its evaluation."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedLM, pipeline
from transformers import AutoModelForSequenceClassification as AutoModelForTexts

import perceiver_ar.hf  # noqa: F401
from pretrain import evaluate, export
from pretrain.errors import InputError
from pretrain.exported_model import find_model
from tests.pretrain.stored_task import CLASSES, STEP, store

AUTO = {
    "masked_lm": AutoModelForMaskedLM,
    "text_classification": AutoModelForTexts,
    "image_classification": AutoModelForImageClassification,
    "optical_flow": AutoModel,
    "multimodal": AutoModel,
}


@pytest.fixture
def stored(corpus: Path, tmp_path: Path) -> Callable[[str], torch.nn.Module]:
    return lambda task: store(task, tmp_path, corpus)


def run_export(folder: Path, *options: str) -> Path:
    assert export.main(["--checkpoint", str(folder / "run"), "--out", str(folder / "out"), *options]) == 0
    return folder / "out"


def run_evaluate(folder: Path, *options: str) -> dict[str, dict[str, float]]:
    assert evaluate.main(["--checkpoint", str(folder / "run"), *options]) == 0
    return json.loads((folder / "run" / "evaluation.json").read_text())["tasks"]


@pytest.mark.parametrize("task", AUTO)
def test_an_exported_model_is_the_trained_one(
    task: str, stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    trained, out = stored(task), run_export(tmp_path)
    model, report = AUTO[task].from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert model.model.state_dict().keys() == trained.state_dict().keys()
    for name, weight in trained.state_dict().items():
        if weight.is_floating_point():
            assert torch.equal(model.model.state_dict()[name], weight), name
    card = ModelCard.load(out / "README.md")
    assert f'"{out}"' in card.text and "| `encoder.num_latents` | 4 |" in card.text and "| None |" not in card.text
    assert "| validation | loss | 2.5000 |" in card.text and "![Validation loss]" in card.text
    assert json.loads((out / "training.json").read_text())["step"] == STEP


@pytest.mark.slow
def test_with_their_code_models_load_where_this_package_is_not_installed(
    stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored("image_classification")
    out = run_export(tmp_path, "--with-code")
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    program = """
import sys
sys.modules["perceiver_ar"] = None  # whether it is installed or not, importing it fails
from transformers import pipeline
[first, *_] = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])
print(first["label"], first["score"])
"""
    image = next((tmp_path / "images").rglob("*.png"))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", program, str(out), str(image)]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    label, score = result.stdout.split()
    [expected, *_] = pipeline("image-classification", str(out))(str(image))
    assert label == expected["label"] and float(score) == pytest.approx(expected["score"])


@pytest.mark.parametrize("task", ["optical_flow", "multimodal"])
def test_measures_of_the_whole_validation_set(
    task: str, stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored(task)
    [(name, measures)] = run_evaluate(tmp_path).items()
    assert name == "validation" and measures["loss"] > 0 and len(measures) > 1
    assert f"| validation | loss | {measures['loss']:.4f} |" in (run_export(tmp_path) / "README.md").read_text()


def test_images_get_the_same_scores_exported_as_evaluated(
    stored: Callable[[str], torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored("image_classification")
    measures = run_evaluate(tmp_path, "--batch", "4")["validation"]
    assert "accuracy" in capsys.readouterr().out
    classify = pipeline("image-classification", str(run_export(tmp_path)))
    files = sorted((tmp_path / "images" / "validation").glob("*/*.png"))
    found = [{entry["label"]: entry["score"] for entry in classify(Image.open(file))} for file in files]
    losses = [-torch.tensor(scores[file.parent.name]).log() for file, scores in zip(files, found, strict=True)]
    right = [max(scores, key=scores.__getitem__) == file.parent.name for file, scores in zip(files, found, strict=True)]
    assert len(files) == 9 and set(found[0]) == set(CLASSES)
    assert measures["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert measures["accuracy"] == pytest.approx(sum(right) / len(right))


def test_texts_get_the_same_scores_exported_as_evaluated(
    stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored("text_classification")
    measures = run_evaluate(tmp_path)["validation"]
    out = run_export(tmp_path)
    classify = pipeline("text-classification", str(out), top_k=None)
    files = sorted((tmp_path / "texts" / "validation").glob("*/*.txt"))
    found = classify([file.read_text() for file in files], truncation=True, batch_size=4)
    scores = [
        next(entry["score"] for entry in entries if entry["label"] == file.parent.name)
        for file, entries in zip(files, found, strict=True)
    ]
    assert measures["loss"] == pytest.approx(-torch.tensor(scores).log().mean().item(), rel=1e-5)
    assert "`bright`, `dark`, `gray`" in (out / "README.md").read_text()


def test_a_masked_language_model_fills_masks(stored: Callable[[str], torch.nn.Module], tmp_path: Path) -> None:
    trained = stored("masked_lm")
    assert run_evaluate(tmp_path).keys() == {"validation"}
    out = run_export(tmp_path, "--dtype", "bf16")
    assert AutoModelForMaskedLM.from_pretrained(out).dtype == torch.bfloat16
    fill = pipeline("fill-mask", str(out), dtype=torch.float32)
    ids = torch.tensor([[byte + 6 for byte in b"abc "] + [3]])
    trained.bfloat16().float()
    assert fill("abc [MASK]", top_k=1)[0]["token"] == trained(ids)[0, 4].argmax().item()


def test_results_of_other_data_stand_beside_those_of_the_run(
    stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored("text_classification")
    own = run_evaluate(tmp_path)["validation"]
    both = run_evaluate(tmp_path, "data.validation=train")
    assert both["validation"] == own and both["validation, data.validation=train"]["loss"] != own["loss"]
    text = (run_export(tmp_path) / "README.md").read_text()
    assert "| validation, data.validation=train | accuracy |" in text and "2.5000" not in text


@pytest.mark.parametrize(
    "options, message",
    [
        (["--reach", "0.5"], "--reach: is for models that continue text, not for runs of task text_classification"),
        (["model.num_classes=4"], "model.num_classes=4: evaluation can use other data"),
        (["data.validation=none"], "none"),
        (["--out", "/nowhere/results.json"], "--out: /nowhere is not a folder"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    options: list[str], message: str, stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored("text_classification")
    with pytest.raises(InputError, match=message):
        run_evaluate(tmp_path, *options)


def test_what_is_for_models_that_continue_text_says_so(
    stored: Callable[[str], torch.nn.Module], tmp_path: Path
) -> None:
    stored("text_classification")
    with pytest.raises(InputError, match="run: is a run of task text_classification, not of a causal language model"):
        find_model(tmp_path / "run")
    with pytest.raises(InputError, match="--data: is for runs on corpora, not on text_classification"):
        run_export(tmp_path, "--data", "elsewhere")
