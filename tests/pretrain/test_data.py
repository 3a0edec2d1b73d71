"""Runs on mixtures, packed documents and streamed data sets: the same batches however they are split."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain import evaluate, export, generate
from pretrain.config import dump_config, load_config
from pretrain.corpus import open_corpus
from pretrain.errors import InputError
from pretrain.preflight import check_run

WORKER = Path(__file__).with_name("train_worker.py")


def records(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def cut_after_step_10(run: Path, copy: Path) -> Path:
    """What is left of a run that was killed behind its checkpoint of step 10."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000020")
    return copy


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A data set of three JSON lines files, with documents from one word to many contexts."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = random.Random(2)
    for part in range(3):
        lines = [
            json.dumps({"text": " ".join(str(rng.randrange(1000)) for _ in range(rng.choice([1, 5, 20, 200])))})
            for _ in range(60)
        ]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines))
    stream = {"dataset": str(folder), "streams": 4, "validation_bytes": 2000, "validation_fraction": 0.1}
    return {"data__corpus": None, "data__stream": stream}


KINDS = ("mixture", "stream", "packed", "crop", "segments")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    mixture: dict[str, Any],
    stream: dict[str, Any],
    write_run: Callable[..., Path],
    start_ranks: Callable[..., Any],
    finish_ranks: Callable[..., str],
) -> Path:
    """Of each kind a run on one rank, that run cut at step 10 and resumed on two, and the same on two all along."""
    folder = tmp_path_factory.mktemp("runs")
    fields: dict[str, dict[str, Any]] = {
        "mixture": mixture,
        "stream": stream,
        "packed": {"data__windows": "packed"},
        "crop": {"data__windows": "crop", "data__segments": True},
        "segments": {"data__segments": True},
    }
    finish_ranks(start_ranks([WORKER, *(write_run(folder / f"{kind}-whole", **fields[kind]) for kind in KINDS)], 1))
    on_two = []
    for kind in KINDS:
        cut_after_step_10(folder / f"{kind}-whole", folder / f"{kind}-resumed")
        on_two.append(write_run(folder / f"{kind}-resumed", **fields[kind]))
        on_two.append(write_run(folder / f"{kind}-pair", **fields[kind], train__micro_batch=1))
    finish_ranks(start_ranks([WORKER, *on_two], 2))
    return folder


@pytest.mark.parametrize("other", ["resumed", "pair"])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_interruptions_do_not_change_what_is_trained_on(runs: Path, kind: str, other: str) -> None:
    expected, found = records(runs / f"{kind}-whole"), records(runs / f"{kind}-{other}")
    assert len({record["batch_hash"] for record in expected}) == 20
    for exact in ("step", "batch_hash", "trained_tokens", "epochs"):
        assert [record[exact] for record in found] == [record[exact] for record in expected], exact
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    validations = [records(runs / f"{kind}-{which}", "validation") for which in (other, "whole")]
    losses = [[record["loss"] for record in validation] for validation in validations]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    accuracies = [validation[-1]["accuracy"] for validation in validations]
    assert accuracies[0] == pytest.approx(accuracies[1], rel=0.1) and 0 < accuracies[0] < 1


@pytest.fixture
def mixed_run(runs: Path) -> Path:
    return runs / "mixture-whole"


def test_epochs_follow_the_weights(mixed_run: Path, corpus: Path, digits: Path) -> None:
    windows = {
        name: -(-(open_corpus(folder).manifest.splits["train"].tokens - 1) // 16)
        for name, folder in {"words": corpus, "digits": digits}.items()
    }
    epochs = records(mixed_run)[-1]["epochs"]
    drawn = {name: round(epochs[name] * windows[name]) for name in windows}
    assert sum(drawn.values()) == 20 * 4
    assert all(epochs[name] == pytest.approx(drawn[name] / windows[name]) for name in windows)
    # 48 samples at 3 : 1, then 32 at 1 : 3, shuffled within blocks that are longer than that.
    assert 25 <= drawn["words"] <= 58


def test_validation_tells_the_parts_of_a_mixture(mixed_run: Path) -> None:
    validation = records(mixed_run, "validation")[-1]
    assert validation["bits_per_byte_of"].keys() == {"words", "digits"}
    parts = sorted(validation["bits_per_byte_of"].values())
    assert parts[0] < validation["bits_per_byte"] < parts[1]


def test_evaluation_of_a_mixture_tells_its_parts(mixed_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    assert evaluate.main(["--checkpoint", str(mixed_run), "--out", str(out), "--reach", "0,1"]) == 0
    results = json.loads(out.read_text())
    of = results["corpora"]
    assert of.keys() == {"words", "digits"}
    # At step 20 the weights are 1 : 3, and bytes are tokens but for the end tokens.
    assert results["loss"] == pytest.approx(of["words"]["loss"] / 4 + of["digits"]["loss"] * 3 / 4)
    assert results["tokens"] == of["words"]["tokens"] + of["digits"]["tokens"]
    assert all(len(part["ablation"]) == 2 for part in of.values())


def test_export_and_generation_of_a_mixture(mixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert export.main(["--checkpoint", str(mixed_run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**words**" in card and "**digits**" in card
    capsys.readouterr()
    for model in (tmp_path / "out", mixed_run):
        arguments = ["--checkpoint", str(model), "--prompt", "12 ", "--max-new-tokens", "5", "--greedy"]
        assert generate.main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == second and first.startswith("12 ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__mixture": {}}, ["data.mixture", "at least 1"]),
        ({"data__corpus": "x"}, ["data: give exactly one of"]),
        ({"weight": -1}, ["data.mixture.words.weight", "at least 0"]),
        ({"weight": {"5": 1}}, ["data.mixture.words.weight", "from step 0"]),
        ({"weight": {"soon": 1}}, ["data.mixture.words.weight"]),
        ({"weight": {"0": 1, "00": 2}}, ["data.mixture.words.weight", "twice"]),
        ({"weight": {"0": 1, "20": 2}}, ["data.mixture.words.weight", "step 20 is never reached"]),
        ({"data__mixture": {"a.b": {"corpus": "x", "weight": 1}}}, ["data.mixture.a.b"]),
        ({"weight": 1e-9}, ["data.mixture.words.weight", "less than one sample"]),
        ({"weight": 0, "other": 0}, ["data.mixture", "all 0"]),
        ({"corpus": "nowhere"}, ["data.mixture.words.corpus", "nowhere does not exist"]),
        ({"max_epochs": 0.01}, ["data.mixture.words.max_epochs", "20 steps would read", "not at most 0.01"]),
        ({"max_epochs": 0}, ["data.mixture.words.max_epochs", "greater than 0"]),
        ({"data__cache": {"max_gib": 0}}, ["data.cache.max_gib", "greater than 0"]),
    ],
)
def test_impossible_mixtures_are_refused(
    tmp_path: Path, write_run: Callable[..., Path], mixture: dict[str, Any], fields: dict[str, Any], words: list[str]
) -> None:
    changed = json.loads(json.dumps(mixture))
    for name, value in fields.items():
        if name.startswith("data__"):
            changed[name] = value
        elif name == "other":
            changed["data__mixture"]["digits"]["weight"] = value
        else:
            changed["data__mixture"]["words"][name] = value
    path = write_run(tmp_path / "run", **changed)
    with pytest.raises(InputError) as refusal:
        check_run(load_config(path), 1)
    assert [word for word in words if word not in str(refusal.value)] == [], refusal.value


def test_what_may_change_in_a_mixture_between_runs(
    tmp_path: Path, write_run: Callable[..., Path], mixture: dict[str, Any]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(load_config(write_run(tmp_path / "run", **mixture))))
    moved = shutil.copytree(mixture["data__mixture"]["words"]["corpus"], tmp_path / "moved")

    def check(**parts: dict[str, Any]) -> None:
        check_run(load_config(write_run(tmp_path / "run", data__corpus=None, data__mixture=parts)), 1)

    words, digits = mixture["data__mixture"].values()
    check(words=words | {"corpus": str(moved), "max_epochs": 9.0}, digits=digits)
    for parts in (
        {"digits": digits, "words": words},
        {"words": words, "numbers": digits},
        {"words": words},
        {"words": words, "digits": digits | {"weight": 0.25}},
        {"words": words, "digits": digits | {"weight": {"0": 0.25, "12": 0.5}}},
    ):
        with pytest.raises(InputError, match=r"holds another run \(data\.mixture"):
            check(**parts)


def test_damage_that_one_rank_finds_ends_all_with_one_line(
    tmp_path: Path,
    write_run: Callable[..., Path],
    start_ranks: Callable[..., Any],
    finish_ranks: Callable[..., str],
    stream: dict[str, Any],
) -> None:
    dataset = shutil.copytree(stream["data__stream"]["dataset"], tmp_path / "dataset")
    (dataset / "part-3.jsonl").write_text((dataset / "part-0.jsonl").read_text() + '\n{"text": "cut he')
    # Only the second rank's streams read this file.
    broken = {"data__corpus": None, "data__stream": stream["data__stream"] | {"dataset": str(dataset)}}
    config = write_run(tmp_path / "run", **broken)
    output = finish_ranks(start_ranks(["pretrain/train.py", "--config", config], 2), code=2)
    assert output.count("\nerror: ") == 1 and "part-3.jsonl" in output, output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_corpora_of_different_tokenizers_do_not_mix(
    tmp_path: Path, write_run: Callable[..., Path], mixture: dict[str, Any], prepare: Callable[..., Path]
) -> None:
    (tmp_path / "tokenizer.json").write_text(word_tokenizer())
    other = prepare(tmp_path, ["a b", "b a", "a a b"], tokenizer=str(tmp_path / "tokenizer.json"), end_token="[EOS]")
    mixed = json.loads(json.dumps(mixture))
    mixed["data__mixture"]["digits"]["corpus"] = str(other)
    with pytest.raises(InputError, match=r"data\.mixture\.digits\.corpus: .* a mixture needs one"):
        check_run(load_config(write_run(tmp_path / "run", **mixed)), 1)


def word_tokenizer() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[EOS]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()
