"""A model opened by what a user calls it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver_ar.models.config import PerceiverARConfig
from pretrain import export
from pretrain.checkpoint import checkpoint_path
from pretrain.errors import InputError
from pretrain.exported_model import ExportedModel, find_model
from pretrain.trained_model import TrainedModel
from tests.pretrain.stored_run import MODEL, store_run, weights_of

ROOT = Path(__file__).parents[2]
FIND = """
import json, sys, torch
from pretrain.errors import InputError
from pretrain.exported_model import find_model

def found(name):
    try:
        model = find_model(name)
        return [model.name, model.architecture.num_channels, model.model().embed.tokens.weight.abs().sum().item()]
    except InputError as error:
        return [error.code, str(error)]

print(json.dumps([found(name) for name in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_run(tmp_path_factory.mktemp("of") / "run", {"corpus": str(corpus)})


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "small"
    assert export.main(["--checkpoint", str(run_dir), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_every_kind_of_folder_is_the_same_model(run_dir: Path, exported: Path, kind: str) -> None:
    folder = {"run": run_dir, "checkpoint": checkpoint_path(run_dir, 20), "export": exported}[kind]
    model = find_model(str(folder))
    assert isinstance(model, ExportedModel if kind == "export" else TrainedModel)
    assert model.name == ("small" if kind == "export" else "run, step 20")
    expected = weights_of(run_dir, 20)
    assert model.architecture == PerceiverARConfig(**MODEL)
    assert (model.dtype, model.within_documents, model.end_id) == (torch.float32, False, 2)
    ids = torch.tensor([model.tokenizer().encode("Eight bytes of text, and more: é")])
    torch.testing.assert_close(model.model()(ids, 20).logits, expected(ids, 20).logits, rtol=0, atol=0)
    wrapped = model.hf_model(torch.bfloat16)
    assert wrapped.dtype == torch.bfloat16 and not wrapped.training
    assert torch.equal(wrapped.model.embed.tokens.weight, expected.embed.tokens.weight.bfloat16())


def test_a_folder_of_models_names_one_of_them(exported: Path, tmp_path: Path) -> None:
    kinds = (
        r"neither a run directory \(no checkpoints/\), nor a checkpoint .*, nor an exported folder \(no config.json\)"
    )
    with pytest.raises(InputError, match=rf"{kinds}; did you mean {exported}\?$"):
        find_model(exported.parent)
    with pytest.raises(InputError, match=rf"{kinds}$"):
        find_model(tmp_path)


def test_a_model_is_found_on_the_hub_by_its_name(
    exported: Path, run_dir: Path, tmp_path: Path, start_hub: Callable[[Path], dict[str, str]]
) -> None:
    shutil.copytree(exported, tmp_path / "models" / "someone" / "small")
    names = ["someone/small", "someone/small@main", "someone/other"]
    command = [sys.executable, "-c", FIND, *names]
    environment = start_hub(tmp_path) | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    plain, revision, other = json.loads(result.stdout)
    expected = weights_of(run_dir, 20).embed.tokens.weight.abs().sum().item()
    assert plain == ["someone/small", 32, pytest.approx(expected)]
    assert revision == ["someone/small@main", 32, pytest.approx(expected)]
    assert other[0] == 2 and other[1].startswith("someone/other: no such folder, and no model on http")


def test_a_hub_that_does_not_answer_may_do_so_later(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIND, "someone/small"]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    [[code, message]] = json.loads(result.stdout)
    assert code == 1
    assert message.startswith("someone/small: no such folder, and http://127.0.0.1:9 does not answer")
    assert "\n" not in message


def test_training_tells_what_a_model_was_trained_for(copied: Path) -> None:
    rewrite(copied / "training.json", precision="bf16", within_documents=True, end_id=7)
    model = find_model(copied)
    assert (model.dtype, model.within_documents, model.end_id) == (torch.bfloat16, True, 7)


@pytest.mark.parametrize(("ids", "end_id"), [(3, 3), ([5, 6], 5)])
def test_models_without_a_record_of_training_tell_by_their_configuration(copied: Path, ids: Any, end_id: int) -> None:
    (copied / "training.json").unlink()
    rewrite(copied / "config.json", dtype="bfloat16")
    rewrite(copied / "generation_config.json", eos_token_id=ids)
    model = find_model(copied)
    assert model.training is None
    assert (model.dtype, model.within_documents, model.end_id) == (torch.bfloat16, False, end_id)


def test_models_of_ids_only_have_no_tokenizer_and_may_have_no_end(copied: Path) -> None:
    for path in copied.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    model = find_model(copied)
    assert model.model().config == model.architecture
    with pytest.raises(InputError, match="copied: has no tokenizer"):
        model.tokenizer()
    with pytest.raises(InputError, match="names no eos_token_id"):
        _ = model.end_id


def other_kind(folder: Path) -> None:
    rewrite(folder / "config.json", model_type="gpt2")


def impossible(folder: Path) -> None:
    rewrite(folder / "config.json", num_heads=5)


def no_json(folder: Path) -> None:
    (folder / "training.json").write_text("{")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def no_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_kind, "config.json: model_type must be 'perceiver-ar', not 'gpt2'"),
        (impossible, r"config.json: num_channels \(32\) must be divisible by num_heads \(5\)"),
        (no_json, "training.json: is not JSON"),
        (no_weights, "copied: cannot be loaded"),
        (cut_weights, "copied: cannot be loaded"),
        (no_tokens, "copied: its tokenizer cannot be loaded"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_a_line(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message) as refused:
        model = find_model(copied)
        model.hf_model()
        model.tokenizer()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such folder, and not owner/name"),
        ("runs/demo/checkpoints/step-00000010", "no such folder, and not owner/name"),
        (".", "neither a run directory"),
    ],
)
def test_names_of_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_model(name)


def test_damaged_checkpoints_are_refused(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    for file in checkpoint_path(run_dir, 20).iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged checkpoint"):
        find_model(checkpoint)
    with pytest.raises(InputError, match="no intact checkpoint"):
        find_model(tmp_path / "run")
