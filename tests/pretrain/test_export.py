"""From a checkpoint to what people use: evaluation, an exported folder, a continued prompt."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import perceiver_ar.hf  # noqa: F401
from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain import evaluate, export, generate
from pretrain.checkpoint import Saver, checkpoint_path
from pretrain.config import CheckpointSection, RunConfig
from pretrain.corpus import open_corpus
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.data import describe_data, open_corpora
from pretrain.errors import InputError
from pretrain.schema import validate
from tests.pretrain.checkpoint.stored_state import StoredState

ROOT = Path(__file__).parents[2]
MODEL = {"vocab_size": 262, "max_seq_len": 64, "max_latents": 16, "num_channels": 32, "num_heads": 2, "num_layers": 2}
TRAIN = {"steps": 20, "global_batch": 4, "micro_batch": 4, "precision": "fp32"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        (root / f"{number}.txt").write_text(f"Document {number} says: " + f"{number * 7919} is a number. " * 8)
    source = {"kind": "text", "root": str(root), "pattern": "*.txt", "licence": "CC0-1.0"}
    config = {"out": str(root / "out"), "sources": [source], "validation_fraction": 0.3}
    prepare_corpus(validate(PrepareConfig, config), Console(file=io.StringIO()))
    return root / "out"


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints of steps 10 and 20, as training leaves them."""
    run_dir = tmp_path_factory.mktemp("run")
    config = {"run": {"dir": str(run_dir)}, "model": MODEL, "data": {"corpus": str(corpus)}, "train": TRAIN}
    for step in (10, 20):
        torch.manual_seed(step)
        write_checkpoint(validate(RunConfig, config), step)
    return run_dir


def write_checkpoint(config: RunConfig, step: int) -> None:
    engine = StoredState(PerceiverAR(config.model))
    saver = Saver(config.run.dir, CheckpointSection(keep=2), engine.ranks, engine, saved_step=step - 10)
    state = {
        "step": step,
        "trained_tokens": step * 64,
        "validation": {"step": step, "loss": 5.0, "perplexity": 148.4, "bits_per_byte": 7.25},
        "config": config.model_dump(mode="json"),
        "data": describe_data(open_corpora(config)),
    }
    saver.begin(state, background=False)
    assert saver.finish()


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "small"
    assert export.main(["--checkpoint", str(run_dir), "--out", str(out)]) == 0
    return out


def weights_of(run_dir: Path, step: int) -> PerceiverAR:
    torch.manual_seed(step)
    state = json.loads((checkpoint_path(run_dir, step) / "state.json").read_text())
    return PerceiverAR(validate(RunConfig, state["config"]).model).eval()


def test_exported_model_has_the_newest_checkpoints_logits(run_dir: Path, exported: Path) -> None:
    ids = AutoTokenizer.from_pretrained(exported)("A text of some length: 123 " * 3, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(exported)
    expected = weights_of(run_dir, 20)(ids[:, -64:], 48).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_a_named_checkpoint_is_exported_in_the_dtype_asked_for(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ten"
    checkpoint = str(checkpoint_path(run_dir, 10))
    export.main(["--checkpoint", checkpoint, "--out", str(out), "--dtype", "bfloat16"])
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    expected = weights_of(run_dir, 10).embed.tokens.weight.bfloat16()
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert [path.name for path in out.parent.iterdir()] == ["ten"]


def test_model_card_tells_data_training_and_metrics(run_dir: Path, exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {"bits_per_byte": 7.25, "perplexity": 148.4}
    assert card.data.pipeline_tag == "text-generation"
    assert "CC0-1.0" in card.text
    assert "1,280 trained tokens" in card.text


def test_documents_begin_and_end_generation_at_the_end_token(exported: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(exported).generation_config
    assert (config.bos_token_id, config.eos_token_id) == (2, 2)


def test_exported_folder_works_in_a_pipeline_of_another_process(exported: Path) -> None:
    program = (
        "import sys, perceiver_ar.hf; from transformers import pipeline; "
        "generator = pipeline('text-generation', model=sys.argv[1]); "
        "texts = ['def main(', 'a']; "
        "out = generator(texts, batch_size=2, do_sample=False, max_new_tokens=80, num_latents=1); "
        "assert [o[0]['generated_text'].startswith(t) for o, t in zip(out, texts)] == [True, True]; "
        "single = generator('a', do_sample=False, max_new_tokens=80, num_latents=1); assert single == out[1]"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(exported)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_exporting_again_replaces_an_export_and_nothing_else(run_dir: Path, exported: Path, tmp_path: Path) -> None:
    before = (exported / "model.safetensors").read_bytes()
    (exported / "stale.txt").write_text("of an earlier export")
    export.main(["--checkpoint", str(run_dir), "--out", str(exported)])
    assert (exported / "model.safetensors").read_bytes() == before
    assert not (exported / "stale.txt").exists()

    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no exported Perceiver AR"):
        export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_export_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out: cannot write"):
        export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "file" / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_evaluation_of_a_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation.json"
    arguments = ["--checkpoint", str(run_dir), "--out", str(out), "--ablation-windows", "5", "--reach", "0.5,1"]
    assert evaluate.main(arguments) == 0
    results = json.loads(out.read_text())
    [of_corpus] = results["corpora"].values()
    split = open_corpus(of_corpus["location"]).manifest.splits["validation"]
    assert results["step"] == 20
    assert results["tokens"] == split.tokens - 1
    assert results["bits_per_byte"] == pytest.approx(8, abs=0.5)  # an untrained model knows nothing
    assert [(row["reach"], row["prefix_tokens"]) for row in of_corpus["ablation"]] == [(0, 0), (0.5, 24), (1, 48)]
    assert {row["tokens"] for row in of_corpus["ablation"]} == {5 * 16}
    assert of_corpus["ablation"][0]["gain"] == 0
    assert f"{results['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_generation_continues_a_prompt_from_every_kind_of_folder(
    run_dir: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("A number: é")
    printed = []
    for model in (exported, run_dir, checkpoint_path(run_dir, 20)):
        arguments = ["--model", str(model), "--prompt-file", str(tmp_path / "prompt.txt"), "--seed", "1"]
        assert generate.main([*arguments, "--max-new-tokens", "30"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("A number: é")
    assert printed[0] == printed[1] == printed[2]


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        (evaluate, ["--stride", "17"], "--stride: 17 is more than the model's max_latents"),
        (evaluate, ["--reach", "0,2"], "--reach: fractions lie between 0 and 1"),
        (evaluate, ["--batch", "0"], "--batch: must be at least 1"),
        (evaluate, ["--data", "nowhere"], "nowhere does not exist"),
        (evaluate, ["--out", "nowhere/x.json"], "--out: nowhere is not a folder"),
        (export, ["--out", "x", "--dtype", "int4"], "--dtype"),
    ],
)
def test_bad_options_are_named(run_dir: Path, command: object, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.main(["--checkpoint", str(run_dir), *arguments])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_folders_without_an_intact_checkpoint_are_refused(run_dir: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run"
    if damage == "empty":
        path.mkdir()
    if damage == "cut":
        path = path / "checkpoints" / "step-00000001"
        path.mkdir(parents=True)
        for file in checkpoint_path(run_dir, 20).iterdir():
            (path / file.name).write_bytes(file.read_bytes()[:-1])
    for command, option in ((evaluate, "--checkpoint"), (generate, "--model")):
        with pytest.raises(InputError, match=r"no such folder|neither a run directory|damaged"):
            command.main([option, str(path), *(["--prompt", "x"] if command is generate else [])])
