"""The command: from runs, exported folders and models of the Hub to tables, files and model cards."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from pretrain import evaluate, export
from pretrain.checkpoint import checkpoint_path
from pretrain.corpus import open_corpus
from pretrain.errors import InputError
from tests.pretrain.evaluation.merging_tokenizer import save_merging_tokenizer
from tests.pretrain.stored_run import store_run, weights_of

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("train_worker.py")
FILE_TEXT = "One short text\nof seven words, é."


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model can read 512 tokens."""
    return store_run(
        tmp_path_factory.mktemp("runs") / "small", {"corpus": str(corpus)}, max_seq_len=512, init_scale=0.2
    )


@pytest.fixture(scope="module")
def export_of_run(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "model"
    assert export.main(["--checkpoint", str(run_dir), "--out", str(out)]) == 0
    return out


@pytest.fixture
def exported(export_of_run: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test."""
    return Path(shutil.copytree(export_of_run, tmp_path / "model"))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(FILE_TEXT)
    return path


def run(*arguments: object) -> None:
    assert evaluate.main(["--checkpoint", *map(str, arguments)]) == 0


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


QUICK = ("--ablation-windows", 5, "--reach", "0.5,1")


def test_a_run_is_evaluated_on_its_own_text(run_dir: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, *QUICK)
    results = read(run_dir / "evaluation.json")
    [(name, of_corpus)] = results["corpora"].items()
    validation = open_corpus(corpus).manifest.splits["validation"]
    stream = open_corpus(corpus).split("validation")
    words = len(open_corpus(corpus).tokenizer().decode(stream.read(0, len(stream))).split())

    assert (name, of_corpus["location"]) == (corpus.name, str(corpus))
    assert (results["checkpoint"], results["step"], results["split"]) == ("step-00000020", 20, "validation")
    assert results["tokens"] == of_corpus["tokens"] == validation.tokens - 1
    # Documents lie end to end: a word that begins one is glued to the last one of the document before.
    assert of_corpus["words"] == words + validation.documents - 1
    nats = of_corpus["loss"] * of_corpus["tokens"]
    assert of_corpus["word_perplexity"] == pytest.approx(math.exp(nats / of_corpus["words"]))
    assert results["perplexity"] == pytest.approx(math.exp(results["loss"]))
    assert results["bits_per_byte"] == pytest.approx(
        results["loss"] / math.log(2) * validation.tokens / validation.bytes
    )
    assert [(row["reach"], row["prefix_tokens"]) for row in of_corpus["ablation"]] == [(0, 0), (0.5, 248), (1, 496)]
    assert {row["tokens"] for row in of_corpus["ablation"]} == {5 * 16}
    assert of_corpus["ablation"][0]["gain"] == 0
    assert results["tasks"] == {}
    output = capsys.readouterr().out
    shown = [f"{of_corpus[key]:.4f}" for key in ("bits_per_byte",)] + [f"{of_corpus['words']:,} words"]
    shown += [f"{loss:.4f}" for loss in of_corpus["loss_by_position"]]
    assert all(text in output for text in shown)


def test_an_exported_model_has_the_runs_numbers_and_they_reach_its_card(
    run_dir: Path, exported: Path, corpus: Path
) -> None:
    run(run_dir, *QUICK)
    run(exported, "--data", corpus, *QUICK)
    ours, theirs = (read(folder / "evaluation.json") for folder in (run_dir, exported))
    assert (theirs["model"], theirs["checkpoint"], theirs["step"]) == ("model", None, 20)
    for key in ("loss", "bits_per_byte", "word_perplexity", "loss_by_position"):
        assert theirs["corpora"][corpus.name][key] == pytest.approx(ours["corpora"][corpus.name][key], rel=1e-6)
    card = ModelCard.load(exported / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    bits_per_byte = theirs["corpora"][corpus.name]["bits_per_byte"]
    assert values["bits_per_byte"] == pytest.approx(bits_per_byte, abs=1e-4)
    assert f"{bits_per_byte:.4f}" in card.text


def test_texts_gather_in_an_exported_folder_beside_what_came_with_it(
    run_dir: Path, corpus: Path, text_file: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "model"
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    export.main(["--checkpoint", str(tmp_path / "run"), "--out", str(exported)])

    def texts() -> dict[str, float]:
        return {name: text["bits_per_byte"] for name, text in read(exported / "evaluation.json")["corpora"].items()}

    def in_card() -> dict[str, float]:
        results = ModelCard.load(exported / "README.md").data.eval_results or []
        return {r.dataset_name: r.metric_value for r in results if r.metric_type == "bits_per_byte"}

    of_training = {corpus.name: 7.0}
    assert texts() == in_card() == of_training
    assert str(corpus) not in (exported / "evaluation.json").read_text()

    renamed = exported.rename(exported.with_name("renamed"))
    run(renamed, "--data", text_file, "--reach", "")
    run(renamed, "--data", corpus, "--split", "train", "--max-windows", 2, "--reach", "")
    renamed.rename(exported)
    of_train = f"{corpus.name}, train text"
    assert texts().keys() == {*of_training, "short.txt", of_train}
    assert texts()[corpus.name] == 7.0
    assert in_card() == pytest.approx(texts(), abs=1e-5)
    run(exported, "--data", corpus, "--max-windows", 2, "--reach", "")
    assert texts()[corpus.name] != 7.0  # validation in training is no more than a sample, too
    assert read(exported / "evaluation.json")["model"] == "model"
    assert "mixed as in training" not in (exported / "README.md").read_text()


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_sample_does_not_replace_the_whole_text(
    run_dir: Path, exported: Path, corpus: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = run_dir if kind == "run" else exported, tmp_path / "out.json"
    options = ("--data", corpus, "--reach", "", "--out", out)
    sample = (*options, "--max-windows", 2)
    run(model, *sample)
    assert read(out)["corpora"][corpus.name]["windows"] == 2
    run(model, *options)
    whole = read(out)
    assert whole["corpora"][corpus.name]["windows"] > 2
    assert "stay" not in capsys.readouterr().out
    run(model, *sample)
    assert read(out) == whole
    assert f"{corpus.name}: results of the whole text are there and stay" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_text_file_is_scored_from_its_first_token_on(
    run_dir: Path, exported: Path, text_file: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out.json"
    run(run_dir if kind == "run" else exported, "--data", text_file, "--out", out, "--stride", 1)

    ids = torch.tensor([2, *(byte + 6 for byte in FILE_TEXT.encode()), 2])
    nats, right = 0.0, 0
    for target in range(1, len(ids)):
        with torch.no_grad():
            logits = weights_of(run_dir, 20)(ids[None, :target], max(0, target - 16)).logits[0, -1]
        nats -= logits.log_softmax(-1)[ids[target]].item()
        right += int(logits.argmax() == ids[target])
    results = read(out)
    of_text = results["corpora"]["short.txt"]
    assert (of_text["split"], of_text["tokens"], of_text["words"]) == (None, len(ids) - 1, 7)
    assert of_text["loss"] * of_text["tokens"] == pytest.approx(nats, rel=1e-5)
    assert of_text["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(FILE_TEXT.encode()), rel=1e-5)
    assert of_text["accuracy"] == pytest.approx(right / (len(ids) - 1))
    assert of_text["word_perplexity"] == pytest.approx(math.exp(nats / 7), rel=1e-4)


def test_several_texts_count_together_by_their_size(
    run_dir: Path, corpus: Path, digits: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    run(run_dir, "--data", corpus, text_file, digits, "--out", out, "--reach", "", "--max-windows", 8)
    results = read(out)
    parts = results["corpora"]
    # Both corpora's folders are called shards: the second is told by its whole path.
    assert list(parts) == ["shards", str(digits), "short.txt"]
    # However few windows of a text were scored, they stand for all of it.
    splits = [open_corpus(folder).manifest.splits["validation"] for folder in (corpus, digits)]
    size = len(FILE_TEXT.encode())
    tokens = [*(split.tokens - 1 for split in splits), size + 1]
    sizes = [*(split.bytes * (split.tokens - 1) / split.tokens for split in splits), size]
    assert results["tokens"] == sum(part["tokens"] for part in parts.values()) < sum(tokens)
    for mean in ("loss", "accuracy"):
        total = sum(part[mean] * count for part, count in zip(parts.values(), tokens, strict=True))
        assert results[mean] == pytest.approx(total / sum(tokens))
    assert results["bits_per_byte"] == pytest.approx(results["loss"] * sum(tokens) / math.log(2) / sum(sizes))


def test_results_of_a_model_gather_until_it_changes(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    out = tmp_path / "run" / "evaluation.json"
    tasks = ("--tasks", "passkey", "--limit", 1)
    run(tmp_path / "run", *tasks)
    assert "passkeys found" in capsys.readouterr().out
    only_tasks = read(out)
    assert only_tasks["corpora"] == {} and "loss" not in only_tasks
    metrics = only_tasks["tasks"]["passkey"]
    assert metrics == {"accuracy": 0.0} | {
        f"accuracy, 512 tokens, {depth}% deep": 0.0 for depth in (0, 25, 50, 75, 100)
    }

    run(tmp_path / "run", "--max-windows", 2, "--reach", "")
    both = read(out)
    assert both["tasks"] == only_tasks["tasks"] and both["loss"] > 0
    run(tmp_path / "run", *tasks)
    assert read(out) == both

    run(checkpoint_path(tmp_path / "run", 10), *tasks)
    assert read(out) == only_tasks | {"model": "run, step 10", "checkpoint": "step-00000010"} | {
        "step": 10,
        "trained_tokens": 640,
    }


def test_other_text_than_a_runs_own_has_a_file_of_its_own(run_dir: Path, text_file: Path) -> None:
    run(run_dir, "--data", text_file)
    assert read(run_dir / "evaluation-short.txt.json")["corpora"].keys() == {"short.txt"}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, prepare: Callable[..., Path]) -> Path:
    """A corpus of another tokenizer."""
    folder = tmp_path_factory.mktemp("merged")
    texts = [f"{number} some words, again and again some words" * 9 for number in range(9)]
    save_merging_tokenizer(folder / "tokenizer.json", texts)
    return prepare(folder, texts, tokenizer=str(folder / "tokenizer.json"))


@pytest.mark.parametrize("model", ["run", "exported", "of unknown training"])
def test_text_in_other_tokens_is_refused(
    run_dir: Path, exported: Path, corpus: Path, merged: Path, tmp_path: Path, model: str
) -> None:
    if model == "of unknown training":
        (exported / "training.json").unlink()
        out = tmp_path / "out.json"
        run(exported, "--data", corpus, "--out", out, "--max-windows", 2, "--reach", "")
        assert read(out)["corpora"][corpus.name]["tokens"] == 32
    with pytest.raises(InputError, match=f"{merged}: prepared with tokenizer"):
        run(run_dir if model == "run" else exported, "--data", merged)


BAD_OPTIONS = [
    (["--stride", "17"], "--stride: 17 is more than the model's max_latents"),
    (["--reach", "0,2"], "--reach: fractions lie between 0 and 1"),
    (["--reach", "half"], "--reach: 'half' is not a list of fractions"),
    (["--batch", "0"], "--batch: must be at least 1"),
    (["--data", "nowhere"], "--data: nowhere does not exist"),
    (["--data", str(ROOT)], "has no manifest.json"),
    (["--out", "nowhere/x.json"], "--out: nowhere is not a folder"),
    (["--limit", "5"], "--limit: is for --tasks"),
    (["--tasks", "passkey", "--include-path", "nowhere"], "--include-path: nowhere is not a folder"),
]


@pytest.mark.parametrize("arguments, message", BAD_OPTIONS)
def test_bad_options_are_named(run_dir: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(run_dir, *arguments)


def test_what_a_model_lacks_is_named(exported: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data: model comes without text"):
        run(exported)
    store_run(tmp_path / "plain", {"corpus": str(corpus)}, (20,), max_seq_len=16)
    with pytest.raises(InputError, match="--reach: the model has no prefix"):
        run(tmp_path / "plain", "--reach", "0,1")
    with pytest.raises(InputError, match="16 tokens is too short"):
        run(tmp_path / "plain", "--tasks", "passkey")


@pytest.mark.slow
def test_ctrl_c_ends_with_a_line_and_leaves_what_was_written(run_dir: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out.json", tmp_path / "long.txt"
    out.write_text("{}")
    text.write_text(FILE_TEXT * 5000)
    command = [sys.executable, ROOT / "pretrain" / "evaluate.py", "--checkpoint", run_dir, "--data", text, "--out", out]
    process = subprocess.Popen([*map(str, command), "--stride", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"whole prefix" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b"interrupted\n"
    finally:
        process.kill()
    assert process.returncode == 130
    assert out.read_text() == "{}" and not list(tmp_path.glob("*.json?*"))


@pytest.mark.slow
def test_a_model_of_the_hub(
    exported: Path, text_file: Path, tmp_path: Path, start_hub: Callable[[Path], dict[str, str]]
) -> None:
    shutil.copytree(exported, tmp_path / "hub" / "models" / "me" / "model")
    command = [sys.executable, ROOT / "pretrain" / "evaluate.py", "--checkpoint", "me/model", "--data", text_file]
    environment = start_hub(tmp_path / "hub")
    subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, check=True, timeout=200)
    run(exported, "--data", text_file)
    ours, theirs = read(exported / "evaluation.json"), read(tmp_path / "evaluation-me--model.json")
    assert theirs["model"] == "me/model"
    of_ours, of_theirs = (results["corpora"]["short.txt"]["loss"] for results in (ours, theirs))
    assert of_theirs == pytest.approx(of_ours)


@pytest.mark.slow
def test_a_plain_decoder_is_trained_and_evaluated_alike(
    tmp_path: Path,
    write_run: Callable[..., Path],
    start_ranks: Callable[..., Any],
    finish_ranks: Callable[..., str],
) -> None:
    fields = {"model__max_seq_len": 32, "model__max_latents": 32, "evaluation__windows": 10_000}
    finish_ranks(start_ranks([WORKER, write_run(tmp_path / "plain", **fields)], 1))
    run(tmp_path / "plain")

    records = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if record["kind"] == "validation"][-1]
    results = read(tmp_path / "plain" / "evaluation.json")
    [of_corpus] = results["corpora"].values()
    assert results["loss"] == pytest.approx(validated["loss"], rel=1e-5)
    assert results["bits_per_byte"] < 6  # it has learned what letters there are
    assert of_corpus["ablation"] == []
