"""The copy task: its sequences and windows, runs on it, and what they learn."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceiver_ar.models.config import PerceiverARConfig
from pretrain import evaluate, export, train
from pretrain.config import dump_config, load_config
from pretrain.corpus.copying import CopyCrops, CopyStrips, CopyTask
from pretrain.corpus.windows import Window
from pretrain.errors import InputError
from pretrain.preflight import check_run
from tests.pretrain.stored_run import store_run
from tests.pretrain.test_data import cut_after_step_10, records

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("train_worker.py")
END = 2


@pytest.fixture
def copy_run(write_run: Callable[..., Path]) -> Callable[..., Path]:
    """write_run for the copy task; `task` are its fields."""

    def write(folder: Path, task: dict[str, Any], **fields: object) -> Path:
        return write_run(folder, data__corpus=None, data__copy_task=task, model__prefix_dropout=0, **fields)

    return write


def shown(window: Window) -> tuple[list[int], list[int]]:
    """The tokens of a window up to its last target, and the targets that count."""
    inputs = window.input_ids if window.valid is None else window.input_ids[window.valid]
    return [*inputs.tolist(), int(window.targets[-1])], window.targets[window.targets >= 0].tolist()


@pytest.mark.parametrize("length", [4, 32, 1000])
def test_the_second_half_is_the_first_again(length: int) -> None:
    mirrored, repeated = (CopyTask(length=length, order=order) for order in ("mirrored", "repeated"))
    half = length // 2
    for number in (0, 1, 2**40 - 1):
        sequence = mirrored.sequence(7, number)
        assert len(sequence) == length and sequence[0] == sequence[-1] == END
        assert sequence.tolist() == sequence[::-1].tolist()
        again = repeated.sequence(7, number)
        assert again[:half].tolist() == again[half:].tolist() == sequence[:half].tolist()


def test_sequences_are_random_bytes_that_follow_from_key_and_number() -> None:
    task = CopyTask(length=20_000)
    contents = [task.sequence(key, number)[1:10_000] for key, number in [(1, 0), (1, 1), (2, 0)]]
    assert all(set(content.tolist()) == set(range(6, 262)) for content in contents)
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert (contents[one] == contents[other]).mean() < 0.02
    # What a run was trained on must not change with a version of a library.
    assert CopyTask(length=12).sequence(1, 0).tolist()[:6] == [2, *RECORDED]


RECORDED = [105, 105, 12, 96, 126]


@pytest.mark.parametrize(("length", "latents", "context"), [(32, 16, 32), (32, 5, 31), (32, 40, 64), (64, 7, 63)])
def test_training_windows_are_beginnings_of_sequences_with_targets_in_their_copies(
    length: int, latents: int, context: int
) -> None:
    task = CopyTask(length=length)
    crops = CopyCrops(task, context=context, latents=latents, key=3)
    seen: Counter[int] = Counter()
    draws = 4000
    for number in range(draws):
        window = crops.window(number)
        assert (window.input_ids.shape, window.targets.shape) == ((context,), (latents,))
        tokens, targets = shown(window)
        assert tokens == task.sequence(3, number)[: len(tokens)].tolist()
        places = range(len(tokens) - len(targets), len(tokens))
        assert tokens[places.start :] == targets and places.start >= length // 2
        seen.update(places)
    # Every token of the copy is a target equally often: binomial counts, 5 standard deviations.
    assert seen.keys() == set(range(length // 2, length))
    run = min(latents, length // 2)
    share = run / (length // 2 + run - 1)
    assert all(abs(count - draws * share) < 5 * (draws * share) ** 0.5 for count in seen.values())


@pytest.mark.parametrize(("length", "latents", "context"), [(32, 16, 32), (32, 5, 31), (32, 40, 64)])
def test_every_copied_token_is_scored_once(length: int, latents: int, context: int) -> None:
    strips = CopyStrips(CopyTask(length=length), 3, context=context, latents=latents)
    scored: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(strips)):
        tokens, targets = shown(strips.window(number))
        assert tokens[len(tokens) - len(targets) :] == targets
        places = range(len(tokens) - len(targets), len(tokens))
        scored.setdefault(tuple(tokens[: length // 2]), []).extend(places)
    assert list(scored.values()) == [list(range(length // 2, length))] * 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__copy_task": {"length": 31}}, ["data.copy_task.length: must be even, not 31"]),
        ({"data__copy_task": {"length": 2}}, ["data.copy_task.length", "at least 4"]),
        ({"data__copy_task": {}}, ["data.copy_task.length"]),
        ({"data__copy_task": {"length": 32, "order": "reversed"}}, ["data.copy_task.order", "mirrored", "repeated"]),
        (
            {"data__copy_task": {"length": 50}},
            ["data.copy_task.length: 50 tokens need model.max_seq_len", "49, not 48"],
        ),
        ({"data__corpus": "x"}, ["data: give exactly one of", "data.copy_task"]),
        ({"data__windows": "packed"}, ["data.copy_task makes windows of its own"]),
        ({"data__segments": True}, ["data.copy_task makes windows of its own"]),
        ({"model__vocab_size": 261}, ["model.vocab_size: 261 is too small", "at least 262"]),
    ],
)
def test_what_cannot_be_copied_is_refused(
    tmp_path: Path, write_run: Callable[..., Path], fields: dict[str, Any], words: list[str]
) -> None:
    defaults = {"data__corpus": None, "data__copy_task": {"length": 32}}
    path = write_run(tmp_path / "run", **(defaults | fields))
    with pytest.raises(InputError) as error:
        check_run(load_config(path), 1)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
def test_ranks_and_interruptions_do_not_change_what_is_trained_on(
    tmp_path: Path, copy_run: Callable[..., Path], start_ranks: Callable[..., Any], finish_ranks: Callable[..., str]
) -> None:
    task = {"length": 40, "order": "repeated"}
    finish_ranks(start_ranks([WORKER, copy_run(tmp_path / "whole", task)], 1))
    cut_after_step_10(tmp_path / "whole", tmp_path / "resumed")
    finish_ranks(start_ranks([WORKER, copy_run(tmp_path / "resumed", task)], 2))
    expected, found = records(tmp_path / "whole"), records(tmp_path / "resumed")
    assert len({record["batch_hash"] for record in expected}) == 20
    for exact in ("step", "batch_hash", "trained_tokens"):
        assert [record[exact] for record in found] == [record[exact] for record in expected], exact
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    whole, resumed = (records(tmp_path / run, "validation")[-1] for run in ("whole", "resumed"))
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    # A token is a byte here: bits per byte are bits per token, and guessing costs eight of them.
    assert whole["bits_per_byte"] == pytest.approx(whole["loss"] / np.log(2))
    assert 7 < whole["bits_per_byte"] < 9


def test_another_task_is_another_run(tmp_path: Path, copy_run: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config(copy_run(run, {"length": 32}))))
    with pytest.raises(InputError, match=r"holds another run \(data.copy_task.length was 32, now 30\)"):
        check_run(load_config(copy_run(run, {"length": 30})), 1)


@pytest.mark.parametrize("name", ["copy_32", "copy_131072"])
def test_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(ROOT / "configs" / f"{name}.yaml"), "--dry-run"]) == 0
    assert "copy_task:" in capsys.readouterr().out


@pytest.mark.slow
def test_thirty_two_tokens_are_copied_without_a_mistake(
    tmp_path: Path, start_ranks: Callable[..., Any], finish_ranks: Callable[..., str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "exported"
    command = ["pretrain/train.py", "--config", "configs/copy_32.yaml", f"run.dir={run}"]
    finish_ranks(start_ranks(command, 1), timeout=1000)
    assert records(run, "validation")[-1]["accuracy"] == 1.0

    def accuracies(model: Path) -> dict[str, float]:
        assert evaluate.main(["--checkpoint", str(model), "--tasks", "copy", "--limit", "100"]) == 0
        tasks = json.loads((model / "evaluation.json").read_text())["tasks"]["copy"]
        return {name: value for name, value in tasks.items() if name.startswith("accuracy")}

    assert accuracies(run) == {"accuracy, 32 tokens, mirrored": 1.0}
    assert export.main(["--checkpoint", str(run), "--out", str(out)]) == 0
    of_exported = accuracies(out)
    assert of_exported.pop("accuracy, 32 tokens, mirrored") == 1.0
    assert max(of_exported.values()) < 0.3  # the other order has not been learned


def test_a_run_without_text_says_so(tmp_path: Path) -> None:
    store_run(tmp_path, {"copy_task": {"length": 32}}, steps=(10,))
    with pytest.raises(InputError, match=r"data.copy_task: has no text to evaluate; .* --tasks copy"):
        evaluate.main(["--checkpoint", str(tmp_path)])


def test_a_model_is_tried_on_what_it_was_trained_on_or_on_both_orders(tmp_path: Path, corpus: Path) -> None:
    for name, data, expected in [
        ("copying", {"copy_task": {"length": 32, "order": "repeated"}}, ["32 tokens, repeated"]),
        ("text", {"corpus": str(corpus)}, ["64 tokens, mirrored", "64 tokens, repeated"]),
    ]:
        store_run(tmp_path / name, data, steps=(10,))
        out = tmp_path / f"{name}.json"
        command = ["--checkpoint", str(tmp_path / name), "--tasks", "copy", "--limit", "4", "--out", str(out)]
        assert evaluate.main(command) == 0
        found = json.loads(out.read_text())["tasks"]["copy"]
        assert list(found) == [f"{metric}, {task}" for task in expected for metric in ("accuracy", "loss")]
        assert all(0 <= found[f"accuracy, {task}"] < 0.1 and 4 < found[f"loss, {task}"] < 9 for task in expected)


def test_a_vocabulary_without_bytes_cannot_be_tried(tmp_path: Path) -> None:
    architecture = PerceiverARConfig(vocab_size=100, max_seq_len=32, max_latents=8, num_channels=16, num_heads=2)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "perceiver-ar", **dataclasses.asdict(architecture)})
    )
    with pytest.raises(InputError, match=r"--tasks copy: needs a vocabulary of 262 .* the model has 100 and 32"):
        evaluate.main(["--checkpoint", str(tmp_path), "--tasks", "copy"])
