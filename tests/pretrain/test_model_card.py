"""What the README of an exported model says, and that it says what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from perceiver_ar.cost import training_flops_per_token
from pretrain.checkpoint import checkpoint_path
from pretrain.model_card import update_evaluation, write_card
from pretrain.release import open_release
from pretrain.trained_model import TrainedModel
from tests.pretrain.stored_run import store_run

TEXT = {"tokens": 5000, "bits_per_byte": 2.123456, "perplexity": 4.5, "word_perplexity": 1234.5, "accuracy": 0.5}
ABLATION = [
    {"reach": 0.0, "prefix_tokens": 0, "bits_per_byte": 2.5, "gain": 0.0},
    {"reach": 1.0, "prefix_tokens": 48, "bits_per_byte": 2.1, "gain": 0.4},
]


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory, prepare: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("licensed")
    source = {"kind": "text", "root": str(folder), "pattern": "*.txt", "licence": "CC0-1.0"}
    return prepare(folder, [f"Document {i} says: {i * 7919}" for i in range(30)], sources=[source])


@pytest.fixture
def run_dir(licensed: Path, tmp_path: Path) -> Path:
    return store_run(tmp_path / "run", {"corpus": str(licensed)})


@pytest.fixture
def make_card(run_dir: Path, tmp_path: Path) -> Callable[..., ModelCard]:
    """make_card(path=run_dir, **options) -> the card in ``tmp_path/card`` of the model there."""

    def make_card(path: Path = run_dir, **options: Any) -> ModelCard:
        release = open_release(TrainedModel.find(path))
        (tmp_path / "card").mkdir(exist_ok=True)
        options = {"loaded_as": "me/model"} | options
        write_card(tmp_path / "card", "me/model", release, **options)
        return ModelCard.load(tmp_path / "card" / "README.md")

    return make_card


def results(**fields: Any) -> dict[str, Any]:
    """As in ``evaluation.json``."""
    of_text = {**TEXT, "ablation": ABLATION}
    measured = {"model": "run, step 20", "step": 20, "split": "validation", **TEXT, "corpora": {"shards": of_text}}
    return {**measured, "tasks": {}, **fields}


def metrics_of(card: ModelCard) -> dict[tuple[str, str], Any]:
    """(text or task, metric) -> value, in the model-index."""
    return {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results or []}


def test_the_card_tells_data_training_and_validation(make_card: Callable[..., ModelCard], run_dir: Path) -> None:
    card = make_card()
    assert metrics_of(card) == {("shards", "bits_per_byte"): 7.0, ("shards", "perplexity"): 148.4}
    assert (card.data.pipeline_tag, card.data.model_name) == ("text-generation", "me/model")
    assert "| shards | validation | 7.0000 | 148.4000 |" in card.text
    assert "CC0-1.0" in card.text
    flops = training_flops_per_token(TrainedModel.find(run_dir).architecture) * 1280
    assert f"1,280 trained tokens, {flops:.3g} FLOPs" in card.text
    assert "| `max_latents` | 16 |" in card.text
    assert 'model="me/model"' in card.text
    assert "trust_remote_code" not in card.text
    local = make_card(with_code=True, loaded_as="exports/model").text
    assert local.count('model="exports/model"') == 2 and "trust_remote_code" in local


def test_evaluation_of_the_same_checkpoint_replaces_validation(
    make_card: Callable[..., ModelCard], run_dir: Path
) -> None:
    passkey = {"accuracy": 0.75, "accuracy, 64 tokens, 50% deep": 0.5, "accuracy_stderr": 0.1}
    (run_dir / "evaluation.json").write_text(json.dumps(results(tasks={"passkey": passkey})))
    card = make_card()
    assert metrics_of(card) == {
        ("shards", "bits_per_byte"): 2.12346,
        ("shards", "perplexity"): 4.5,
        ("shards", "word_perplexity"): 1234.5,
        ("shards", "accuracy"): 0.5,
        ("passkey", "accuracy"): 0.75,
    }
    assert "| shards | validation | 5,000 | 2.1235 | 4.5000 | 1,234.5000 | 0.5000 |" in card.text
    assert "| 48 | 2.1000 | +0.4000 |" in card.text
    assert "| passkey | accuracy | 0.7500 ± 0.1000 |" in card.text

    of_another = make_card(checkpoint_path(run_dir, 10))
    assert metrics_of(of_another)["shards", "bits_per_byte"] == 7.5
    assert "passkey" not in of_another.text


def test_passkeys_are_a_table_by_length_and_depth(make_card: Callable[..., ModelCard], run_dir: Path) -> None:
    cells = {
        f"accuracy, {length} tokens, {depth}% deep": share
        for length, shares in {2048: (1.0, 0.5), 1024: (0.9, 0.0)}.items()
        for depth, share in zip((0, 100), shares, strict=True)
    }
    (run_dir / "evaluation.json").write_text(json.dumps(results(tasks={"passkey": {"accuracy": 0.6} | cells})))
    text = make_card().text
    assert "| length | 0% deep | 100% deep |\n" in text
    assert "| 2,048 tokens | 100% | 50% |\n| 1,024 tokens | 90% | 0% |" in text
    assert "| passkey | accuracy | 0.6000 |" in text
    assert "2048" not in text


def test_metrics_of_tasks_have_the_names_of_their_kind_and_for_people(
    make_card: Callable[..., ModelCard], run_dir: Path
) -> None:
    copied = {"accuracy, 131072 tokens, mirrored": 0.5, "loss, 131072 tokens, mirrored": 2.0}
    chosen = {
        "acc": 0.3,
        "acc_stderr": 0.01,
        "acc_norm": 0.4,
        "exact_match,strict": 0.2,
        "exact_match_stderr,strict": 0.1,
    }
    (run_dir / "evaluation.json").write_text(json.dumps(results(tasks={"copy": copied, "chosen": chosen})))
    card = make_card()
    entries = {(result.metric_type, result.metric_name) for result in card.data.eval_results or []}
    assert {entry for entry in entries if entry[0] in ("accuracy", "loss", "exact_match")} == {
        ("accuracy", "accuracy"),
        ("accuracy", "accuracy, 131,072 tokens, mirrored"),
        ("loss", "loss, 131,072 tokens, mirrored"),
        ("accuracy", "accuracy, normalized by length"),
        ("exact_match", "exact match, strict"),
    }
    assert "| chosen | acc | 0.3000 ± 0.0100 |" in card.text
    assert "| chosen | exact_match,strict | 0.2000 ± 0.1000 |" in card.text


def test_tasks_stand_beside_validation_where_no_text_was_evaluated(
    make_card: Callable[..., ModelCard], run_dir: Path
) -> None:
    only_tasks = {"model": "run, step 20", "step": 20, "corpora": {}, "tasks": {"copy": {"accuracy": 1.0}}}
    (run_dir / "evaluation.json").write_text(json.dumps(only_tasks))
    assert metrics_of(make_card()) == {
        ("shards", "bits_per_byte"): 7.0,
        ("shards", "perplexity"): 148.4,
        ("copy", "accuracy"): 1.0,
    }


def test_a_mixture_shows_each_corpus_and_the_whole(make_card: Callable[..., ModelCard], run_dir: Path) -> None:
    corpora = {"a": TEXT, "b": {**TEXT, "bits_per_byte": 3.0, "ablation": []}}
    (run_dir / "evaluation.json").write_text(json.dumps(results(corpora=corpora, bits_per_byte=2.5)))
    card = make_card()
    assert (metrics_of(card)["a", "bits_per_byte"], metrics_of(card)["b", "bits_per_byte"]) == (2.12346, 3.0)
    assert "| mixed as in training | validation | 5,000 | 2.5000 |" in card.text


def test_the_picture_shows_validation_up_to_the_checkpoint(
    make_card: Callable[..., ModelCard], run_dir: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "card" / "validation.png"
    assert "![Validation loss](validation.png)" in make_card().text
    drawn = picture.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"kind": "validation", "step": 30, "bits_per_byte": 1.0}) + "\n")
    make_card()
    assert picture.read_bytes() == drawn  # of step 20, as before

    picture.unlink()
    assert "validation.png" not in make_card(checkpoint_path(run_dir, 10)).text  # one validation is no curve
    assert not picture.exists()


def test_what_a_run_began_with_is_told_without_its_place(
    make_card: Callable[..., ModelCard], run_dir: Path, licensed: Path
) -> None:
    assert "Started with" not in make_card().text
    for origin, told in {"/home/me/runs/first": "runs/first", "me/model@step-20": "me/model@step-20"}.items():
        store_run(run_dir, {"corpus": str(licensed)}, (20,), init_from=origin)
        assert f"Started with the weights of `{told}`." in make_card().text


def test_a_checkpoint_outside_of_its_run_has_a_card(
    make_card: Callable[..., ModelCard], run_dir: Path, tmp_path: Path
) -> None:
    (run_dir / "metrics.jsonl").unlink()
    assert "1,280 trained tokens" in make_card().text


def test_evaluating_an_exported_model_updates_its_card_and_nothing_else_in_it(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    make_card()
    path = tmp_path / "card" / "README.md"
    before = path.read_text()
    assert before.count("148.4") == 2  # in the model-index and in the text
    path.write_text(before + "\n## Thanks\n\nTo all.\n")

    update_evaluation(tmp_path / "card", results(split=None, tasks={"passkey": {"accuracy": 0.75}}))
    updated = ModelCard.load(path)
    assert metrics_of(updated)["passkey", "accuracy"] == 0.75
    assert metrics_of(updated)["shards", "bits_per_byte"] == 2.12346
    assert updated.data.model_name == "me/model"
    assert "148.4" not in path.read_text()
    assert "2.1235" in updated.text
    kept = [part for part in before.split("\n## ")[1:] if not part.startswith("Evaluation")]
    assert all(part.strip() in updated.text for part in kept)
    assert updated.text.endswith("## Thanks\n\nTo all.\n")

    update_evaluation(tmp_path / "card", results(split=None, tasks={"passkey": {"accuracy": 0.75}}))
    assert path.read_text() == str(updated)


@pytest.mark.parametrize("text", [None, "Mine.\n", "---\nlicense: mit\n---\n# Mine\n\n## Use\n\nAs you like.\n"])
def test_cards_of_other_origin_are_updated_too(tmp_path: Path, text: str | None) -> None:
    folder = tmp_path / "converted"
    folder.mkdir()
    if text is not None:
        (folder / "README.md").write_text(text)
    update_evaluation(folder, results())
    card = ModelCard.load(folder / "README.md")
    assert metrics_of(card)["shards", "perplexity"] == 4.5
    assert card.data.model_name == "converted"
    if text is not None:
        assert "Mine" in card.text
    if "license" in (text or ""):
        assert card.data.license == "mit"
        assert card.text.index("## Evaluation") < card.text.index("## Use")
