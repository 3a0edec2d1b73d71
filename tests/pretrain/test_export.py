"""From a checkpoint to a Hugging Face folder, and what people do with it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import perceiver_ar.hf  # noqa: F401
from pretrain import export
from pretrain.checkpoint import checkpoint_path
from pretrain.corpus import StridedWindows, open_corpus, stack_windows
from pretrain.errors import InputError
from pretrain.evaluation import spread_evenly
from tests.pretrain.checkpoint.stored_state import refused_writes
from tests.pretrain.stored_run import store_run, weights_of

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("train_worker.py")


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_run(tmp_path_factory.mktemp("run"), {"corpus": str(corpus)})


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "small"
    assert export.main(["--checkpoint", str(run_dir), "--out", str(out)]) == 0
    return out


def run_python(program: str, *arguments: object, **environment: str) -> str:
    """Run a program far from this project; returns what it printed."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, cwd="/", env=os.environ | environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_exported_model_has_the_newest_checkpoints_logits(run_dir: Path, exported: Path) -> None:
    ids = AutoTokenizer.from_pretrained(exported)("A text of some length: 123 " * 3, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(exported)
    expected = weights_of(run_dir, 20)(ids[:, -64:], 48).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_a_named_checkpoint_is_exported_in_the_dtype_asked_for(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ten"
    export.main(["--checkpoint", str(checkpoint_path(run_dir, 10)), "--out", str(out), "--dtype", "bf16"])
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    expected = weights_of(run_dir, 10).embed.tokens.weight.bfloat16()
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert [path.name for path in out.parent.iterdir()] == ["ten"]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_go_into_files_of_the_size_asked_for(corpus: Path, tmp_path: Path, tied: bool) -> None:
    store_run(tmp_path / "run", {"corpus": str(corpus)}, (20,), num_channels=128, num_layers=4, tied_output=tied)
    out = tmp_path / "out"
    export.main(["--checkpoint", str(tmp_path / "run"), "--out", str(out), "--max-shard-size", "1MB"])

    files = sorted(out.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-0000{i + 1}-of-0000{len(files)}.safetensors" for i in range(len(files))
    ]
    assert len(files) >= 3
    held = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            assert stored.metadata() == {"format": "pt"}
            held |= dict.fromkeys(stored.keys(), file.name)
            assert sum(stored.get_tensor(name).nbytes for name in stored.keys()) <= 10**6  # noqa: SIM118
    expected = weights_of(tmp_path / "run", 20)
    assert held.keys() == {f"model.{name}" for name in expected.state_dict()}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected.state_dict().values())

    ids = torch.arange(40)[None] + 6
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert torch.equal(model(ids).logits, expected(ids, 24).logits)
    assert not any(report.values()), report


@pytest.mark.slow
def test_memory_holds_one_file_of_weights_at_a_time(corpus: Path, tmp_path: Path) -> None:
    store_run(tmp_path / "run", {"corpus": str(corpus)}, (20,), num_channels=768, num_heads=8, num_layers=12)
    program = """
import re, sys
from pathlib import Path
from pretrain import export, hf_export  # before it is measured: libraries are no weights
def memory(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = memory("VmRSS")
export.main(["--checkpoint", sys.argv[1], "--out", sys.argv[2], "--max-shard-size", "20MB"])
print("peak", memory("VmHWM") - before)
"""
    printed = run_python(program, tmp_path / "run", tmp_path / "out", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert weights > 350e6
    # A file, what was read for it, and what a command takes besides.
    assert float(printed.rpartition("peak ")[2]) < 100


def test_the_same_checkpoint_gives_the_same_bytes(run_dir: Path, exported: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    before = contents(exported)
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
    } < before.keys()
    (exported / "stale.txt").write_text("of an earlier export")
    export.main(["--checkpoint", str(run_dir), "--out", str(exported)])
    assert contents(exported) == before


def test_who_may_read_one_file_may_read_all(exported: Path) -> None:
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1


def test_the_training_is_told_to_programs(run_dir: Path, exported: Path, corpus: Path) -> None:
    manifest = open_corpus(str(corpus)).manifest
    assert json.loads((exported / "training.json").read_text()) == {
        "run": run_dir.name,
        "step": 20,
        "trained_tokens": 1280,
        "precision": "fp32",
        "within_documents": False,
        "end_id": 2,
        "tokenizer": "bytes",
        "tokenizer_hash": manifest.tokenizer_hash,
        "fingerprints": {corpus.name: manifest.fingerprint},
    }


def test_documents_begin_and_end_generation_at_the_end_token(exported: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(exported).generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 2, 2)


def test_exported_folder_works_in_a_pipeline_of_another_process(exported: Path) -> None:
    program = """
import sys, perceiver_ar.hf
from transformers import pipeline
generator = pipeline("text-generation", model=sys.argv[1])
texts = ["def main(", "a"]
out = generator(texts, batch_size=2, do_sample=False, max_new_tokens=80, num_latents=1)
assert [o[0]["generated_text"].startswith(t) for o, t in zip(out, texts)] == [True, True]
assert generator("a", do_sample=False, max_new_tokens=80, num_latents=1) == out[1]
"""
    run_python(program, exported, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")


def test_with_its_code_a_model_loads_where_this_package_is_not_installed(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "with-code"
    export.main(["--checkpoint", str(run_dir), "--out", str(out), "--with-code"])
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    program = """
import sys, torch
sys.modules["perceiver_ar"] = None  # whether it is installed or not, importing it fails
from transformers import AutoModel, AutoModelForCausalLM, pipeline
folder, ids = sys.argv[1], torch.arange(100)[None]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
hidden = AutoModel.from_pretrained(folder, trust_remote_code=True)(ids).last_hidden_state
model.generate(ids, penalty_alpha=0.5, top_k=3, max_new_tokens=2)
text = pipeline("text-generation", model=folder, trust_remote_code=True)("def", max_new_tokens=30, do_sample=False)
logits, new = model(ids).logits, model.generate(ids, max_new_tokens=30, do_sample=False, num_latents=4)
torch.save((logits, hidden @ model.get_input_embeddings().weight.T, new, text), sys.argv[2])
"""
    run_python(program, out, tmp_path / "made", HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1", PYTHONPATH="")
    logits, projected, new, text = torch.load(tmp_path / "made")
    ids, model = torch.arange(100)[None], AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits, weights_of(run_dir, 20)(ids[:, -64:], 48).logits)
    torch.testing.assert_close(projected, logits)
    assert torch.equal(new, model.generate(ids, max_new_tokens=30, do_sample=False, num_latents=4))
    assert text[0]["generated_text"].startswith("def")


@pytest.mark.slow
def test_ranks_that_held_parts_of_the_weights_train_one_model(
    corpus: Path, tmp_path: Path, write_run: Callable[..., Path], start_ranks: Any, finish_ranks: Any
) -> None:
    config = write_run(tmp_path / "run", train__zero={"stage": 3})
    finish_ranks(start_ranks([WORKER, config], 2))
    export.main(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    windows = StridedWindows(open_corpus(str(corpus)).split("validation"), context=48, latents=16, stride=16)
    validated = [windows.window(number) for number in spread_evenly(len(windows), 4)]
    input_ids, targets, *_ = stack_windows(validated)
    loss = torch.nn.functional.cross_entropy(model(input_ids).logits.flatten(0, 1), targets.flatten())
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    [*_, in_training] = [record for record in records if record["kind"] == "validation"]
    assert in_training["step"] == 20
    assert loss.item() == pytest.approx(in_training["loss"], rel=1e-6)


def test_an_export_replaces_nothing_but_an_export(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no exported Perceiver AR"):
        export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_export_stays_where_a_link_points_to(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    for _ in range(2):
        assert export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


def test_the_current_folder_is_not_pulled_away(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--out: \. is the current folder"):
        export.main(["--checkpoint", str(run_dir), "--out", "."])


def test_an_export_is_not_exported_again(run_dir: Path, tmp_path: Path) -> None:
    assert export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    with pytest.raises(InputError, match="out: is an exported folder already; give a run directory"):
        export.main(["--checkpoint", str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    assert f'model="{tmp_path / "out"}"' in (tmp_path / "out" / "README.md").read_text()


def test_a_failed_export_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not written: "):
        export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "file" / "out")])
    for full_at in (2_000, 60_000):  # in the tokenizer, in the weights
        with refused_writes(full_at), pytest.raises(InputError, match="is not written: "):
            export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "full")])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
    with pytest.raises(InputError, match=r"no such folder|neither a run directory|damaged"):
        export.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dtype", "int4"], "--dtype"),
        (["--max-shard-size", "5"], "--max-shard-size: '5' is not a size such as 500MB or 5GB"),
        (["--push-to-hub", "name"], "--push-to-hub: 'name' is no name of a repository"),
        (["--private"], "--private: .* --push-to-hub"),
        (["--data", "a", "b"], "--data: 2 corpora, the run has 1"),
    ],
)
def test_bad_options_are_named(run_dir: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.main(["--checkpoint", str(run_dir), "--out", str(tmp_path / "out"), *arguments])


def test_an_upload_without_a_token_is_refused_before_anything_is_written(run_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "pretrain/export.py", "--checkpoint", run_dir, "--out", tmp_path / "out"]
    environment = {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | {"HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [*command, "--push-to-hub", "me/demo"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no token for the Hugging Face Hub")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
