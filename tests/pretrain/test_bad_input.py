"""Whatever is wrong, `pretrain/train.py` refuses it in one line that says what and why, and creates nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pretrain.config import dump_config, load_config
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.errors import run_command
from pretrain.schema import validate
from pretrain.train import main

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "pretrain" / "train.py")


def prepare(folder: Path, name: str, words: int, **fields: str) -> None:
    text = folder / f"{name}-text"
    text.mkdir()
    generator = random.Random(0)
    for number in range(8):
        (text / f"{number}.txt").write_text(" ".join(f"w{generator.randrange(500)}" for _ in range(words)))
    source = {"kind": "text", "root": str(text)}
    config = {"out": str(folder / name), "sources": [source], "validation_fraction": 0.3, **fields}
    prepare_corpus(validate(PrepareConfig, config), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bytes`, `words` (500 words of another tokenizer) and `short` (too few bytes for a window)."""
    folder = tmp_path_factory.mktemp("corpora")
    vocabulary = {f"w{number}": number for number in range(500)} | {"<end>": 500, "<unk>": 501}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "words.json"))
    prepare(folder, "bytes", words=200)
    prepare(folder, "short", words=1)
    prepare(folder, "words", words=200, tokenizer=str(folder / "words.json"), end_token="<end>")
    return folder


@pytest.fixture
def run_yaml(tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good run file in an else empty working directory."""
    monkeypatch.chdir(tmp_path)
    good = {
        "run": {"dir": "run"},
        "model": {"vocab_size": 262, "max_seq_len": 64, "max_latents": 16, "num_channels": 32, "num_heads": 2},
        "data": {"corpus": str(corpora / "bytes")},
        "train": {"steps": 10, "global_batch": 8, "micro_batch": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(good))
    return path


@pytest.fixture
def refuse(run_yaml: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the command in this process (only ever as a dry run), check how it refuses, return its line."""

    def call(*overrides: str, config: Path = run_yaml) -> str:
        # A dry run checks all that a run does; should it pass, no training starts inside of pytest.
        monkeypatch.setattr(sys, "argv", [TRAIN, "--config", str(config), *overrides, "--dry-run"])
        before, started = snapshot(run_yaml.parent, corpora), time.monotonic()
        with pytest.raises(SystemExit) as exit:
            run_command(main)
        output = capsys.readouterr()
        return check_refusal(exit.value.code, output.out, output.err, before, started, run_yaml.parent, corpora)

    return call


def check_refusal(code, out: str, err: str, before: dict, started: float, *folders: Path) -> str:
    assert time.monotonic() - started < 10
    assert code == 2, out + err
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert snapshot(*folders) == before
    return err


def snapshot(*folders: Path) -> dict[str, tuple[int, str]]:
    """Path -> time of change and content, of everything in the folders."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for folder in folders
        for path in [folder, *folder.rglob("*")]
    }


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120, check=False)


def test_the_file_the_cases_start_from_is_good(run_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(run_yaml), "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    assert os.listdir(run_yaml.parent) == ["run.yaml"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # unknown keys, at each level
        (["trian.steps=1"], ["trian: unknown key", "did you mean train?"]),
        (["train.stepz=1"], ["train.stepz: unknown key", "did you mean train.steps?"]),
        (["train.zero.stag=1"], ["train.zero.stag: unknown key", "did you mean train.zero.stage?"]),
        (["model.num_channel=64"], ["model.num_channel: unknown key", "did you mean model.num_channels?"]),
        (["lr=1e-3"], ["lr: unknown key", "did you mean optimizer.lr?"]),
        (["logging.qqq=1"], ["logging.qqq: unknown key", "known are every, tensorboard, wandb_project"]),
        # wrong types
        (["train.steps=yes"], ["train.steps: must be a whole number", '"yes"']),
        (["train.steps=3.5"], ["train.steps: must be a whole number", "3.5"]),
        (["train.steps=true"], ["train.steps: must be a whole number", "true"]),
        (["train.steps='10'"], ["train.steps: must be a whole number", '"10"']),
        (["train.steps="], ["train.steps: must be a whole number", "null"]),
        (["train.zero.stage=true"], ["train.zero.stage: must be a whole number", "true"]),
        (["train.compile=1"], ["train.compile: must be true or false", "1"]),
        (["train.compile=true", "train.zero.stage=3"], ["train.compile: needs train.zero.stage 0, 1 or 2", "not 3"]),
        (["optimizer.lr=fast"], ["optimizer.lr: must be a number", '"fast"']),
        (["optimizer.lr=.nan"], ["optimizer.lr: must be a number", '".nan"']),
        (["optimizer.lr=1e999"], ["optimizer.lr=1e999", "too large"]),
        (["optimizer.betas=0.9"], ["optimizer.betas: must be a list", "0.9"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas.1: is missing"]),
        (["data.tokenizer=[bytes]"], ["data.tokenizer: must be text", '["bytes"]']),
        (["model=3"], ["model: must be a group of keys", "3"]),
        (["optimizer="], ["optimizer: must be a group of keys", "null"]),
        (["run.dir="], ["run.dir: must be", "null"]),
        (["run.dir=''"], ["run.dir: must be a path"]),
        # values out of range
        (["train.steps=0"], ["train.steps: must be greater than 0", "not 0"]),
        (["train.micro_batch=-2"], ["train.micro_batch: must be greater than 0", "-2"]),
        (["run.seed=-1"], ["run.seed: must be at least 0", "-1"]),
        (["optimizer.lr=-1e-3"], ["optimizer.lr: must be greater than 0", "-0.001"]),
        (["stability.sigmas=none"], ['stability.sigmas: must be a number or null, not "none"']),
        (["stability.max_rise=1"], ["stability.max_rise: must be greater than 1 or null, not 1"]),
        (["data.mixture={part: 3}"], ["data.mixture.part: must be a group of keys, not 3"]),
        (["watchdog.dead_rank=0.001"], ["watchdog.dead_rank: must be at least 1, not 0.001"]),
        (["optimizer.betas=[0.9, 1.0]"], ["optimizer.betas.1: must be less than 1"]),
        (["train.gradient_clipping=-1"], ["train.gradient_clipping: must be at least 0"]),
        (["schedule.final_lr_fraction=2"], ["schedule.final_lr_fraction: must be at most 1"]),
        (["train.zero.stage=4"], ["train.zero.stage: must be at most 3", "4"]),
        (["train.precision=fp16"], ["train.precision: must be 'bf16' or 'fp32'", '"fp16"']),
        (["schedule.kind=step"], ["schedule.kind: must be", "'cosine'", '"step"']),
        (["model.attention_dropout=1.5"], ["model.attention_dropout (1.5)", "[0, 1)"]),
        (["model.prefix_dropout=-0.1"], ["model.prefix_dropout (-0.1)", "[0, 1)"]),
        (["model.vocab_size=0"], ["model.vocab_size (0)", "at least 1"]),
        (["model.num_layers=-1"], ["model.num_layers (-1)", "at least 1"]),
        # values that do not go together
        (["model.max_latents=65"], ["model.max_latents (65)", "at most max_seq_len (64)"]),
        (["model.num_heads=3"], ["model.num_channels (32)", "divisible by num_heads (3)"]),
        (["train.micro_batch=3"], ["train.micro_batch: 3 must divide train.global_batch (8)"]),
        (["train.zero={stage: 0}"], ["train.zero.stage 0", "bf16", "use stage 1"]),
        (
            ["train.precision=fp32", "train.zero={stage: 0, offload_optimizer: true}"],
            ["train.zero.offload_optimizer: needs train.zero.stage 1, 2 or 3"],
        ),
        (
            ["train.precision=fp32", "train.zero={stage: 0, overlap_communication: true}"],
            ["train.zero.overlap_communication: needs train.zero.stage 1, 2 or 3"],
        ),
        (
            ["train.zero={stage: 2, offload_parameters: true}"],
            ["train.zero.offload_parameters: needs train.zero.stage 3", "not 2"],
        ),
        (["schedule.warmup_steps=11"], ["schedule.warmup_steps (11) must be at most train.steps (10)"]),
        (
            ["schedule={kind: wsd, warmup_steps: 5, decay_steps: 6}"],
            ["schedule.warmup_steps + decay_steps (11) must be at most train.steps (10)"],
        ),
        (["schedule.kind=wsd"], ["schedule.decay_steps: must be at least 1 for schedule.kind wsd"]),
        (["schedule.decay_steps=5"], ["schedule.decay_steps: is for schedule.kind wsd only, not cosine"]),
        (["train.attention=flash"], ["train.attention: must be 'auto', 'sdpa' or 'reference'", '"flash"']),
        (["model.preset=large"], ["model: preset must be one of default, perceiver_io, paper", "'large'"]),
        # overrides that are none
        (["steps"], ["'steps'", "key.sub=value"]),
        (["train..steps=1"], ["'train..steps=1'", "key.sub=value"]),
        (["=1"], ["'=1'", "key.sub=value"]),
        (["train.steps=[1"], ["'train.steps=[1'"]),
        (["train.steps.x=1"], ["train.steps is 10, not a group of keys"]),
        (["train={steps: 1, steps: 2}"], ["key 'steps' appears twice"]),
        (["run.dir=!!python/object/apply:os.getcwd []"], ["python/object/apply"]),
        # against the corpus
        (["data.corpus=nowhere"], ["data.corpus", "nowhere", "does not exist", "prepare.py"]),
        (["data.corpus=."], ["data.corpus", "manifest.json", "half-written"]),
        (["data.corpus=run.yaml"], ["data.corpus", "run.yaml"]),
        (["data.tokenizer=gpt2"], ["data.tokenizer: is gpt2", "are those of bytes"]),
        (["model.vocab_size=100"], ["model.vocab_size: 100 is too small", "at least 262"]),
        (["model.max_seq_len=100000"], ["data.corpus", "tokens", "max_seq_len + 1 = 100001"]),
        (["train.global_batch=100000"], ["train.global_batch: 100000 is more than the", "windows"]),
        # against the machine
        (["--ranks=3"], ["train.global_batch: 8 must be a multiple of", "(2) x ranks (3) = 6"]),
        (["--ranks=8"], ["train.global_batch: 8 must be a multiple of", "(2) x ranks (8) = 16"]),
        (["run.dir=run.yaml/below"], ["run.dir", "run.yaml/below", "cannot be written", "Not a directory"]),
        (["run.dir=run.yaml"], ["run.dir", "run.yaml cannot be written", "choose another"]),
        (["run.dir=/proc/run"], ["run.dir: /proc/run cannot be written", "choose another"]),
        (["run.dir=" + "x" * 300], ["run.dir", "cannot be written", "too long"]),
        # the command line
        (["--confg=x"], ["unrecognized arguments: --confg=x", "--help"]),
        (["--conf", "x"], ["unrecognized arguments: --conf"]),
        (["--config"], ["--config", "expected one argument"]),
        (["--ranks=0"], ["--ranks: must be greater than 0", "0"]),
        (["--ranks=two"], ["--ranks: must be a whole number, not 'two'"]),
        (["--tokens-per-second=fast"], ["error: --tokens-per-second: must be a number, not 'fast'"]),
        (["--tokens-per-second=-5"], ["--tokens-per-second: must be greater than 0", "-5"]),
        (["--tokens-per-second=nan"], ["--tokens-per-second: must be greater than 0", "nan"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value[0], str) else None,
)
def test_wrong_values(refuse: Callable[..., str], overrides: list[str], words: list[str]) -> None:
    line = refuse(*overrides)
    assert [word for word in words if word not in line] == [], line


def test_all_problems_at_once(refuse: Callable[..., str]) -> None:
    line = refuse("train.stepz=1", "model.max_latents=65", "train.micro_batch=3", "optimizer.lr=x", "schedule.kind=wsd")
    for name in ("train.stepz", "model.max_latents", "train.micro_batch", "optimizer.lr", "schedule.decay_steps"):
        assert name in line
    line = refuse("data.corpus=nowhere", "run.dir=/proc/run", "--ranks=3")
    for name in ("data.corpus", "run.dir", "train.global_batch"):
        assert name in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"# nothing but a comment\n", ["is empty"]),
        (b"- run\n- model\n", ["key: value"]),
        (b"hello", ["key: value", "hello"]),
        (b"run:\n  dir: x\n bad: [1\n", ["line 3"]),
        (b"run: {dir: x\n", ["line 2"]),
        (b"run:\n\tdir: x\n", ["line 2"]),
        (b"run:\n  dir: a\n  seed: 1\n  dir: b\n", ["line 4", "key 'dir' appears twice"]),
        (b"run:\n  dir: x\n---\nrun:\n  dir: x\n", ["line 3", "document"]),
        (b"run: &a\n  dir: *a\n", ["line 2", "aliases"]),
        (b"? [run]\n: x\n", ["line 1", "keys must be plain text"]),
        (b"run:\n  dir: \xff\xfe\n", ["UTF-8"]),
        (b"run: {dir: x}\n", ["model: is missing", "data: is missing", "train: is missing"]),
        (b"\x00\x01\x02", ["not YAML"]),
        (b"[" * 5000, ["not YAML"]),
    ],
    ids=range(15),
)
def test_wrong_files(refuse: Callable[..., str], tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes(content)
    line = refuse(config=path)
    missing = [word for word in words if word not in line]
    assert missing == [], line
    assert "other.yaml" in line or "is missing" in line


def test_no_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere.yaml: no such file" in refuse(config=tmp_path / "nowhere.yaml")
    assert "is a folder" in refuse(config=tmp_path)


def corrupt_manifest(corpus: Path) -> None:
    (corpus / "manifest.json").write_bytes((corpus / "manifest.json").read_bytes()[:-40])


def edit_manifest(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["vocab_size"] = 10
    (corpus / "manifest.json").write_text(json.dumps(manifest))


def forget_manifest(corpus: Path) -> None:
    (corpus / "manifest.json").unlink()


def shard(corpus: Path) -> Path:
    return next(corpus.glob("train*.bin"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (corrupt_manifest, ["manifest.json", "damaged", "prepare it again"]),
        (edit_manifest, ["manifest.json", "checksum", "prepare it again"]),
        (forget_manifest, ["no manifest.json", "half-written", "prepare.py"]),
        (lambda corpus: shard(corpus).unlink(), ["train", ".bin", "missing", "prepare"]),
        (lambda corpus: os.truncate(shard(corpus), 100), ["train", ".bin", "has 100 bytes", "prepare"]),
    ],
    ids=["cut manifest", "edited manifest", "no manifest", "no shard", "cut shard"],
)
def test_damaged_corpora(
    refuse: Callable[..., str], corpora: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    shutil.copytree(corpora / "bytes", tmp_path / "copy")
    damage(tmp_path / "copy")
    line = refuse("data.corpus=copy")
    assert [word for word in ["data.corpus", *words] if word not in line] == [], line


def test_other_corpora(refuse: Callable[..., str], corpora: Path) -> None:
    line = refuse(f"data.corpus={corpora / 'words'}", "data.tokenizer=bytes")
    assert "data.tokenizer: is bytes" in line and "words.json" in line
    assert "model.vocab_size: 262 is too small" in line and "at least 502" in line
    line = refuse(f"data.corpus={corpora / 'short'}")
    assert "data.corpus" in line and "one window needs model.max_seq_len + 1 = 65" in line


@pytest.fixture
def earlier_run(run_yaml: Path) -> Path:
    """A run folder that was started with the good file."""
    folder = run_yaml.parent / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config(run_yaml)))
    return folder


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layers=3", ["model.num_layers was 8, now 3"]),
        ("run.seed=1", ["run.seed was 0, now 1"]),
        ("train.global_batch=4", ["train.global_batch was 8, now 4"]),
        ("optimizer.betas=[0.9, 0.99]", ["optimizer.betas was [0.9, 0.95], now [0.9, 0.99]"]),
        ("schedule.kind=linear", ["schedule.kind was cosine, now linear"]),
        ("train.precision=fp32", ["train.precision was bf16, now fp32"]),
    ],
)
def test_another_run_in_the_folder(
    refuse: Callable[..., str], earlier_run: Path, override: str, words: list[str]
) -> None:
    line = refuse(override)
    assert [word for word in ["run.dir", "choose another run.dir", *words] if word not in line] == [], line


def test_a_run_folder_that_cannot_be_read(refuse: Callable[..., str], earlier_run: Path) -> None:
    (earlier_run / "config.yaml").write_text("run: {dir: x}\n")
    line = refuse()
    assert "run.dir" in line and "config.yaml cannot be used" in line and "choose another" in line


def test_a_run_may_be_continued_elsewhere_and_for_longer(earlier_run: Path, corpora: Path) -> None:
    shutil.copytree(corpora / "bytes", earlier_run.parent / "moved")
    changes = ["train.steps=20", "train.micro_batch=1", "train.zero.stage=3", "logging.every=1", "data.corpus=moved"]
    assert main(["--config", "run.yaml", *changes, "--dry-run", "--ranks=4"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config", "required", "--help"]),
        (["--config", "run.yaml", "--ranks", "2"], ["--ranks", "--dry-run only"]),
        (["--config", "run.yaml", "--local_rank=0", "train.steps=-1"], ["train.steps: must be greater than 0"]),
    ],
    ids=["nothing", "ranks of a real run", "launcher's flag"],
)
def test_as_a_process(run_yaml: Path, corpora: Path, arguments: list[str], words: list[str]) -> None:
    before, started = snapshot(run_yaml.parent, corpora), time.monotonic()
    result = run(sys.executable, TRAIN, *arguments, cwd=run_yaml.parent)
    line = check_refusal(result.returncode, result.stdout, result.stderr, before, started, run_yaml.parent, corpora)
    assert [word for word in words if word not in line] == [], line


def test_only_the_first_rank_reports(run_yaml: Path) -> None:
    result = run(sys.executable, TRAIN, "--config", "nowhere.yaml", cwd=run_yaml.parent, LOCAL_RANK="1", WORLD_SIZE="2")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed --num_accelerators 2 --quiet", "torchrun --nproc-per-node 2"])
def test_under_a_launcher(run_yaml: Path, launcher: str) -> None:
    before = snapshot(run_yaml.parent)
    [program, *options] = launcher.split()
    program = str(Path(sys.executable).parent / program)
    # The launchers are scripts of this environment and look for its `python`.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [program, *options, TRAIN, "--config", "run.yaml", "train.micro_batch=8"]
    result = run(*command, cwd=run_yaml.parent, **environment)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: train.global_batch: 8 must be a multiple of train.micro_batch (8) x ranks (2) = 16"], (
        result.stderr
    )
    assert snapshot(run_yaml.parent) == before
