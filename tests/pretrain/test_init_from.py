"""Runs that start from another model's weights."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain import train
from pretrain.config import dump_config, load_config
from pretrain.distributed import RanksError
from pretrain.errors import InputError
from pretrain.preflight import check_run
from pretrain.startup import build_objective
from pretrain.trained_model import TrainedModel
from tests.pretrain.stored_run import store_run, weights_of

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("train_worker.py")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run directory with checkpoints of steps 10 and 20."""
    return store_run(tmp_path_factory.mktemp("stored"), {"corpus": str(corpus)}, qk_norm=True)


@pytest.fixture(scope="module")
def exported(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    TrainedModel.find(stored).hf_model().save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, write_run: Callable[..., Path]) -> Callable[..., Path]:
    """write(source, **model): a run's YAML file whose `model` says no more than this."""

    def write(source: object, name: str = "run", **model: Any) -> Path:
        path = write_run(tmp_path / name)
        fields = json.loads(path.read_text())
        fields["model"] = {"init_from": str(source)} | model
        path.write_text(json.dumps(fields))
        return path

    return write


@pytest.mark.parametrize("kind", ["run", "checkpoint", "folder"])
def test_architecture_and_weights_are_the_sources(
    kind: str, stored: Path, exported: Path, write: Callable[..., Path]
) -> None:
    source = {"run": stored, "checkpoint": stored / "checkpoints" / "step-00000010", "folder": exported}[kind]
    config = load_config(write(source, prefix_dropout=0.25, max_seq_len=96))
    expected = weights_of(stored, 10 if kind == "checkpoint" else 20)
    theirs = {name: value for name, value in asdict(expected.config).items() if name != "init_from"}
    assert asdict(config.model.architecture) == theirs | {"prefix_dropout": 0.25, "max_seq_len": 96}
    check_run(config, 1)
    model = build_objective(config, None).model
    assert model.config == config.model.architecture and type(model.config) is PerceiverARConfig
    assert_same_weights(model, expected)


def assert_same_weights(model: PerceiverAR, expected: PerceiverAR) -> None:
    weights, needed = model.state_dict(), expected.state_dict()
    assert weights.keys() == needed.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, needed[name]), name


def test_a_folder_of_perceiver_io(tmp_path: Path, write: Callable[..., Path]) -> None:
    recording = ROOT / "tests" / "fixtures" / "perceiver-io-0.11.1" / "csm_default"
    values = json.loads(recording.with_suffix(".json").read_text())
    tensors = load_file(recording.with_suffix(".safetensors"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    hparams = {name.removeprefix("hparams."): value for name, value in values.items() if name.startswith("hparams.")}
    config = {"model_type": "perceiver-ar-causal-language-model", "model_config": hparams}
    (folder / "config.json").write_text(json.dumps(config))
    prefix = "state_dict."
    weights = {n.replace(prefix, "backend_model."): t for n, t in tensors.items() if n.startswith(prefix)}
    save_file(weights, folder / "model.safetensors")
    config = load_config(write(folder))
    check_run(config, 1)
    model = build_objective(config, None).model.eval()
    logits = model(tensors["input_ids"], values["prefix_len"]).logits
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_heads": 4}, "model.num_heads: must be 2 for the weights of "),
        ({"vocab_size": 300, "norm": "layernorm"}, "; model.norm: must be rmsnorm for the weights of "),
        ({"preset": "paper"}, "model.preset: leave it out"),
        ({"learned_positions": True}, "model.learned_positions: must be False"),
        ({"num_head": 2}, "model.num_head: unknown key, did you mean model.num_heads?"),
    ],
)
def test_fields_that_do_not_fit(
    model: dict[str, Any], message: str, exported: Path, write: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as error:
        train.main(["--config", str(write(exported, **model)), "--dry-run"])
    assert message in str(error.value)


def test_learned_positions_end_where_they_did(tmp_path: Path, corpus: Path, write: Callable[..., Path]) -> None:
    store_run(tmp_path, {"corpus": str(corpus)}, (10,), learned_positions=True)
    with pytest.raises(
        InputError, match=r"^model\.max_seq_len: must be 64 for the weights of .*, not 96: leave it out$"
    ):
        check_run(load_config(write(tmp_path, max_seq_len=96)), 1)


def test_data_of_another_tokenizer_is_refused(exported: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "training.json").write_text(json.dumps({"tokenizer": "o200k", "tokenizer_hash": "0123456789abcdef"}))
    with pytest.raises(InputError, match=r"^model\.init_from: .* was trained on tokens of o200k, those of .* of bytes"):
        check_run(load_config(write(folder)), 1)


def test_data_that_may_be_of_another_tokenizer_is_warned_of(
    exported: Path, corpus: Path, tmp_path: Path, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(tmp_path / "larger", {"corpus": str(corpus)}, (10,), vocab_size=389)
    TrainedModel.find(tmp_path / "larger").hf_model().save_pretrained(tmp_path / "audio")
    capsys.readouterr()
    assert train.main(["--config", str(write(tmp_path / "audio")), "--dry-run"]) == 0
    assert capsys.readouterr().err == (
        f"warning: model.init_from: {tmp_path}/audio has 389 ids and does not tell its tokenizer, that of {corpus} has "
        "262: make sure that both mean the same tokens\n"
    )
    for certain in (tmp_path / "larger", exported):  # it tells its tokenizer; it has as many ids
        assert train.main(["--config", str(write(certain)), "--dry-run"]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "model.init_from: /no/such/folder: no such folder"),
        (ROOT, f"model.init_from: {ROOT / 'config.json'}: no such file"),
        (ROOT / "setup.py", f"model.init_from: {ROOT / 'setup.py'}: is not a file that torch.save has written"),
    ],
)
def test_sources_that_are_none(source: object, message: str, write: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as error:
        train.main(["--config", str(write(source))])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("task", "data", "needed"),
    [
        ("masked_lm", {"corpus": "any"}, "MaskedLMConfig"),
        ("text_classification", {"folder": "any"}, "MaskedLMConfig or TextClassifierConfig"),
        ("optical_flow", {"train": {"kind": "generated"}}, "OpticalFlowConfig"),
    ],
)
def test_models_of_other_kinds_are_one_problem(
    task: str, data: dict[str, Any], needed: str, stored: Path, tmp_path: Path
) -> None:
    run = {"task": task, "run": {"dir": str(tmp_path / "run")}, "model": {"init_from": str(stored)}, "data": data}
    (tmp_path / "run.yaml").write_text(json.dumps(run | {"train": {"steps": 1, "global_batch": 1, "micro_batch": 1}}))
    with pytest.raises(InputError) as error:
        load_config(tmp_path / "run.yaml")
    problem = f"{stored} is a model of another kind: PerceiverARConfig, not {needed}"
    assert str(error.value) == f"model.init_from: {problem}"


def test_damaged_weights_are_one_line(exported: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    config = load_config(write(folder))
    with pytest.raises(RanksError, match=r"^model\.init_from: .*model\.safetensors: is damaged .*$"):  # of all ranks
        build_objective(config, None)


def test_a_run_that_has_begun_needs_its_source_no_more(
    exported: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    path = write(folder, prefix_dropout=0.25)
    begun = load_config(path)
    begun.run.dir.mkdir()
    (begun.run.dir / "config.yaml").write_text(dump_config(begun))
    shutil.rmtree(folder)
    assert load_config(path) == load_config(begun.run.dir / "config.yaml") == begun
    check_run(begun, 1)


@pytest.mark.slow
def test_dry_run_from_the_hub(
    exported: Path, tmp_path: Path, write: Callable[..., Path], start_hub: Callable[[Path], dict[str, str]]
) -> None:
    shutil.copytree(exported, tmp_path / "hub" / "models" / "someone" / "small")
    environment = start_hub(tmp_path / "hub")

    def dry_run(source: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "pretrain/train.py", "--config", str(write(source)), "--dry-run"]
        return subprocess.run(command, cwd=ROOT, env=environment | changed, capture_output=True, text=True, timeout=200)

    found = dry_run("someone/small")
    assert (found.returncode, found.stderr) == (0, "")
    for line in ("num_channels: 32", "max_seq_len: 64", "qk_norm: true", "init_from: someone/small"):
        assert f"\n  {line}\n" in found.stdout
    missing = dry_run("someone/else")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert missing.stderr.startswith("error: model.init_from: someone/else: no such folder, and no model on http://")
    unreachable = dry_run("someone/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.returncode == 1 and unreachable.stderr.count("\n") == 1
    assert "http://127.0.0.1:9 does not answer" in unreachable.stderr


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path, kind: str = "train") -> list[float]:
    return [record["loss"] for record in records(run, kind)]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    write_run: Callable[..., Path],
    start_ranks: Callable[..., Any],
    finish_ranks: Callable[..., str],
) -> Path:
    """Runs: `source`; from its weights `still`, which hardly moves, and `whole`, `pair` and `begun`, which go on."""
    folder = tmp_path_factory.mktemp("trained")

    def started(name: str, **fields: object) -> Path:
        constant = {"schedule__kind": "constant", "schedule__warmup_steps": 0}
        path = write_run(folder / name, **constant | {"optimizer__lr": 1e-3, "train__steps": 6} | fields)
        content = json.loads(path.read_text())
        content["model"] = {"init_from": str(folder / "source")}
        path.write_text(json.dumps(content))
        return path

    first = [
        write_run(folder / "source", train__steps=10),
        started("still", optimizer__lr=1e-12, train__steps=1),
        started("whole"),
        started("begun", train__steps=3),
    ]
    finish_ranks(start_ranks([WORKER, *first], 1))
    pair = started("pair", train__zero={"stage": 3}, train__micro_batch=1)
    finish_ranks(start_ranks([WORKER, pair], 2))
    shutil.move(folder / "source", folder / "gone")
    finish_ranks(start_ranks([WORKER, started("begun")], 1))
    return folder


@pytest.mark.slow
def test_a_run_begins_as_good_as_its_source_ended(trained: Path) -> None:
    assert losses(trained / "still", "validation") == pytest.approx(losses(trained / "gone", "validation")[-1:])


@pytest.mark.slow
def test_a_run_goes_on_without_its_source(trained: Path) -> None:
    assert len(losses(trained / "whole")) == 6
    assert losses(trained / "begun") == losses(trained / "whole")
    assert losses(trained / "begun", "validation")[-1:] == losses(trained / "whole", "validation")


@pytest.mark.slow
def test_ranks_and_zero_stages_start_alike(trained: Path) -> None:
    assert losses(trained / "pair") == pytest.approx(losses(trained / "whole"), rel=1e-5)
