import fcntl
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console

from pretrain.corpus import open_corpus
from pretrain.corpus.writing.folder import work_folder
from pretrain.errors import InputError, run_command
from pretrain.prepare import main

PROJECT = Path(__file__).resolve().parents[4]
COMMAND = [sys.executable, str(PROJECT / "pretrain" / "prepare.py")]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def workplace(tmp_path):
    """A small tree of files and a config for it."""
    for number in range(12):
        path = tmp_path / "tree" / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number} with an é\n" * (number + 1), encoding="utf-8")
    lines = [json.dumps({"body": f"line {number} of JSON", "n": number}) for number in range(9)]
    (tmp_path / "tree" / "lines.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "c.yaml").write_text(
        "out: data/deep/corpus\n"
        "sources:\n"
        "  - {kind: text, root: tree, licence: CC0-1.0}\n"
        "  - {kind: jsonl, root: tree, field: body, licence: MIT}\n"
        "validation_fraction: 0.25\n"
    )
    return tmp_path


def state(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(workplace: Path, *arguments: str) -> str:
    """The one error line of a run, in this process, that must end with code 2 and change nothing."""
    before = state(workplace)
    output, errors = io.StringIO(), io.StringIO()
    with chdir(workplace), redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as exit:
        run_command(lambda _: main(arguments))
    assert (exit.value.code, output.getvalue()) == (2, "")
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("reading: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    after = state(workplace)
    assert {k: v for k, v in after.items() if (workplace / k).is_file()} == {
        k: v for k, v in before.items() if (workplace / k).is_file()
    }
    assert after.keys() == before.keys()
    return lines[0]


def test_prepare_inspect_verify_and_again(workplace):
    first = run(workplace, "--config", "c.yaml")
    assert first.returncode == 0, first.stderr
    assert "data/deep/corpus: prepared" in first.stdout and "order-2 entropy" in first.stdout
    assert "reading: " in first.stderr and " MB/s" in first.stderr
    folder = workplace / "data" / "deep" / "corpus"
    assert [path.name for path in folder.parent.iterdir()] == ["corpus"]
    manifest = open_corpus(folder).manifest
    assert sum(split.documents for split in manifest.splits.values()) == 21
    assert manifest.licence == "CC0-1.0 AND MIT"
    assert [(source.kind, source.files, source.documents) for source in manifest.sources] == [
        ("text", 12, 12),
        ("jsonl", 1, 9),
    ]
    ids = {id for split in manifest.splits for id in open_corpus(folder).split(split).document_ids()}
    assert {"part0/0.txt", "part2/11.txt", "lines.jsonl:1", "lines.jsonl:9"} <= ids

    written = state(folder)
    again = run(workplace, "--config", "c.yaml")
    assert (again.returncode, state(folder)) == (0, written)
    assert "done already" in again.stdout and "reading" not in again.stderr

    for path in (workplace / "tree").rglob("*.txt"):
        path.touch()
    touched = run(workplace, "--config", "c.yaml")
    assert (touched.returncode, state(folder)) == (0, written) and "done already" in touched.stdout

    inspected = run(workplace, "inspect", str(folder), "--samples", "2")
    assert inspected.returncode == 0 and "tokens per document" in inspected.stdout
    histograms = [[line for line in r.stdout.splitlines() if " – " in line] for r in (first, inspected)]
    assert histograms[0] == histograms[1] != []
    assert "of JSON" in inspected.stdout or "with an é" in inspected.stdout

    verified = run(workplace, "verify", str(folder))
    assert verified.returncode == 0 and "all hashes hold" in verified.stdout
    shard = folder / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    assert "train-00000.bin: damaged" in refused(workplace, "verify", str(folder))


def test_another_corpus_in_the_way_is_left_alone(workplace):
    assert run(workplace, "--config", "c.yaml").returncode == 0
    assert "another configuration" in refused(workplace, "--config", "c.yaml", "validation_fraction=0.5")
    (workplace / "tree" / "part0" / "0.txt").write_text("something else")
    assert "sources have changed" in refused(workplace, "--config", "c.yaml")
    assert "is no corpus" in refused(workplace, "--config", "c.yaml", "out=tree")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", "c.yaml", "validation_fraktion=0.1", "shard_mib=-1"], "validation_fraktion: unknown key"),
        (["--config", "c.yaml", "validation_fraction=1"], "validation_fraction: must be less than 1"),
        (["--config", "c.yaml", "sources=[]"], "sources: "),
        (["--config", "c.yaml", "sources=[{kind: text, root: gone}]"], "root gone is not a folder"),
        (["--config", "c.yaml", "sources=[{kind: text, root: tree, pattern: '*.md'}]"], "no file in tree matches"),
        (["--config", "c.yaml", "sources=[{kind: text, root: tree, pattern: /etc/*}]"], "pattern '/etc/*'"),
        (["--config", "c.yaml", "sources=[{kind: hearsay}]"], "sources.0.kind: "),
        (["--config", "c.yaml", "sources=[{kind: jsonl, root: tree, field: title}]"], "lines.jsonl:1: "),
        (["--config", "c.yaml", "tokenizer=gone.json"], "tokenizer: there is no file gone.json"),
        (["--config", "c.yaml", "tokenizer=c.json"], "tokenizer: c.json is no fast tokenizer"),
        (["--config", "c.yaml", "end_token=x"], "end_token: "),
        (["--config", "c.yaml", "out=c.yaml"], "out: c.yaml exists"),
        ([], "--config"),
        (["verify"], "DIR"),
        (["verify", "tree"], "tree has no manifest.json"),
        (["inspect", "gone"], "gone does not exist"),
        (["inspect", "tree", "--samples", "-2"], "argument --samples: must be 0 or more, not -2"),
        (["inspect", "tree", "--samples", "two"], "argument --samples: must be 0 or more, not two"),
    ],
)
def test_bad_input_is_one_line_and_creates_nothing(workplace, arguments, message):
    (workplace / "c.json").write_text("{}")
    assert message in refused(workplace, *arguments)


def test_a_file_that_is_not_utf_8_is_named(workplace):
    (workplace / "tree" / "part1" / "bad.txt").write_bytes(b"caf\xe9")
    line = refused(workplace, "--config", "c.yaml")
    assert "bad.txt: not UTF-8" in line


def test_what_a_killed_process_of_another_version_left_is_removed(workplace):
    partial = workplace / "data" / "deep" / ".corpus.partial"
    (partial / "another hash").mkdir(parents=True)
    (partial / "collected").mkdir()
    (partial / "collected" / "another unit.done").write_text("{}")
    (partial / "documents.spool").write_text("old")
    assert run(workplace, "--config", "c.yaml").returncode == 0
    assert [path.name for path in partial.parent.iterdir()] == ["corpus"]


def test_what_is_left_when_killed_after_publishing_is_removed(workplace):
    assert run(workplace, "--config", "c.yaml").returncode == 0
    partial = workplace / "data" / "deep" / ".corpus.partial"
    partial.mkdir()
    (partial / "tokenized.done").write_text("{}")
    result = run(workplace, "--config", "c.yaml")
    assert result.returncode == 0 and "done already" in result.stdout and not partial.exists()


@pytest.fixture
def all_of_it(workplace):
    """A config that takes every file around it, and writes among them."""
    (workplace / "all.yaml").write_text(
        "out: data/deep/corpus\nsources:\n  - {kind: text, root: ., pattern: '**/*.txt*'}\nvalidation_fraction: 0.25\n"
    )
    return workplace


def test_what_is_written_is_no_source(all_of_it):
    """The text held out, above all, lies in the work folder of a run that was killed."""
    run(all_of_it, "--config", "all.yaml", "out=elsewhere")
    expected = open_corpus(all_of_it / "elsewhere").manifest
    shutil.move(all_of_it / "elsewhere", all_of_it.parent / "elsewhere")
    for folder in (".corpus.partial/hash", ".corpus.partial/collected", "corpus"):
        path = all_of_it / "data" / "deep" / folder / "sample.txt"
        path.parent.mkdir(parents=True)
        path.write_text("text held out")
    listed = run(all_of_it, "--config", "all.yaml", "--dry-run", "out=./data/../data/deep/corpus/")
    assert listed.returncode == 2 and "is no corpus" in listed.stderr
    shutil.rmtree(all_of_it / "data" / "deep" / "corpus")
    assert " 12 " in run(all_of_it, "--config", "all.yaml", "--dry-run").stdout
    (all_of_it / "link").symlink_to("data/deep")
    assert run(all_of_it, "--config", "all.yaml", "out=link/corpus").returncode == 0
    manifest = open_corpus(all_of_it / "data" / "deep" / "corpus").manifest
    assert (manifest.fingerprint, manifest.sources[0].files) == (expected.fingerprint, 12)
    again = run(all_of_it, "--config", "all.yaml")
    assert "done already" in again.stdout and "reading" not in again.stderr


def test_what_is_written_trains_no_tokenizer(all_of_it):
    arguments = "--config", "all.yaml", "tokenizer_training.vocab_size=265"
    assert run(all_of_it, "train-tokenizer", *arguments, "tokenizer=before.json").returncode == 0
    path = all_of_it / "data" / "deep" / ".corpus.partial" / "sample.txt"
    path.parent.mkdir(parents=True)
    path.write_text("held out " * 10_000)
    assert run(all_of_it, "train-tokenizer", *arguments, "tokenizer=after.json").returncode == 0
    assert (all_of_it / "before.json").read_bytes() == (all_of_it / "after.json").read_bytes()


def test_a_source_all_of_which_is_written_is_refused(workplace):
    path = workplace / "data" / "deep" / ".corpus.partial" / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_text("left by another attempt")
    assert "sources.0: all of its files lie in" in refused(
        workplace, "--config", "c.yaml", "sources=[{kind: text, root: data}]"
    )


@pytest.mark.parametrize("target", ["empty", "not there yet"])
def test_out_may_be_a_link(workplace, target):
    (workplace / "empty").mkdir()
    (workplace / "link").symlink_to(target)
    assert run(workplace, "--config", "c.yaml", "out=link").returncode == 0
    assert (workplace / "link").is_symlink()
    assert open_corpus(workplace / target).manifest.splits["train"].documents
    assert "done already" in run(workplace, "--config", "c.yaml", "out=link").stdout
    assert list(workplace.glob(".*")) == []


def test_a_mount_point_is_refused_at_once(workplace):
    assert "out: /proc is a mount point" in refused(workplace, "--config", "c.yaml", "out=/proc")


def test_the_work_folder_may_go_while_it_is_waited_for(tmp_path, monkeypatch):
    """Another process may finish and remove it between the opening of the folder and the lock."""
    folder, flock = tmp_path / ".corpus.partial", fcntl.flock
    removed = []

    def flock_after_removal(handle: int, operation: int) -> None:
        if not removed:
            removed.append(folder.rmdir())
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with work_folder(tmp_path / "corpus", Console(file=io.StringIO())) as locked:
        assert locked == folder and removed
        with (
            pytest.raises(InputError, match="another process is writing"),
            work_folder(tmp_path / "corpus", Console(file=io.StringIO())),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_corpus(workplace):
    partial = workplace / "data" / "deep" / ".corpus.partial"
    partial.mkdir(parents=True)
    (partial / "documents.spool").write_text("theirs")
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert "another process is writing" in refused(workplace, "--config", "c.yaml")
    finally:
        os.close(handle)


def test_the_config_for_a_folder_of_ones_own(tmp_path):
    (tmp_path / "my_text").mkdir()
    for number in range(3):
        (tmp_path / "my_text" / f"{number}.txt").write_text(f"text number {number}")
    assert run(tmp_path, "--config", str(PROJECT / "configs" / "corpora" / "my_text.yaml")).returncode == 0
    assert open_corpus(tmp_path / "data" / "my_text").manifest.splits["train"].documents == 2


@pytest.mark.slow
def test_the_standard_library(tmp_path):
    began = time.monotonic()
    result = run(tmp_path, "--config", str(PROJECT / "configs" / "corpora" / "stdlib.yaml"))
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 60
    manifest = open_corpus(tmp_path / "data" / "stdlib").manifest
    assert manifest.splits["train"].bytes > 10_000_000
    baselines = manifest.splits["validation"].baselines
    assert 4 < baselines.order_0 < 5.5 and 1.5 < baselines.order_2 < 3 and 1 < baselines.xz < 2


def test_a_dry_run_says_what_would_be_done_and_does_nothing(workplace):
    before = state(workplace)
    result = run(workplace, "--config", "c.yaml", "--dry-run", "processes=3")
    assert result.returncode == 0 and state(workplace) == before
    bytes_of_text = sum(path.stat().st_size for path in (workplace / "tree").rglob("*.txt"))
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert ["text", "CC0-1.0", "1", "12", f"{bytes_of_text:,}"] in rows
    assert "validation_fraction: 0.25" in result.stdout and "processes: 3" in result.stdout
    assert "tokenizer: bytes, vocabulary 262" in result.stdout
    assert f"out: {workplace}/data/deep/corpus will be written" in result.stdout
    assert run(workplace, "--config", "c.yaml").returncode == 0
    assert "corpus is done already" in run(workplace, "--config", "c.yaml", "--dry-run").stdout
    assert "another configuration" in refused(workplace, "--config", "c.yaml", "--dry-run", "shard_mib=1.0")
    assert "gone is not a folder" in refused(
        workplace, "--config", "c.yaml", "--dry-run", "out=x", "sources=[{kind: text, root: gone}]"
    )


def test_train_a_tokenizer_then_prepare_with_it(workplace):
    with (workplace / "c.yaml").open("a") as file:
        file.write("tokenizer: own.json\ntokenizer_training: {vocab_size: 280}\n")
    line = refused(workplace, "--config", "c.yaml")
    assert "own.json" in line and "prepare.py train-tokenizer --config" in line
    assert "not trained yet" in run(workplace, "--config", "c.yaml", "--dry-run").stdout
    trained = run(workplace, "train-tokenizer", "--config", "c.yaml", "tokenizer_training.vocab_size=270")
    assert (trained.returncode, trained.stdout) == (0, "own.json: trained\n"), trained.stderr
    assert run(workplace, "--config", "c.yaml", "processes=1").returncode == 0
    manifest = open_corpus(workplace / "data" / "deep" / "corpus").manifest
    assert manifest.vocab_size == 270 and "tokenizer_training" not in manifest.config
    assert "done already" in run(workplace, "--config", "c.yaml", "processes=2", "tokenizer_training=null").stdout


def test_a_full_disk_leaves_no_tokenizer(workplace):
    process = subprocess.run(
        [
            *COMMAND,
            "train-tokenizer",
            "--config",
            "c.yaml",
            "tokenizer=new/own.json",
            "tokenizer_training.vocab_size=270",
        ],
        cwd=workplace,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == "error: new/own.json: File too large"
    assert list((workplace / "new").iterdir()) == []


def test_commands_that_fail_exit_with_2(workplace):
    result = run(workplace, "--config", "c.yaml", "sources=[]")
    assert (result.returncode, result.stdout) == (2, "") and result.stderr.startswith("error: sources: ")


def test_processes_start_without_heavy_imports():
    """Every worker process imports what the command does; torch alone takes seconds."""
    code = "import sys, pretrain.prepare; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "pretrain.corpus.writing.prepare" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pandas", "tokenizers", "sentencepiece"}


@pytest.mark.parametrize("arguments", [[], ["train-tokenizer"], ["inspect"], ["verify"]])
def test_help(arguments):
    with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as exit:
        main([*arguments, "--help"])
    assert exit.value.code == 0
    text = output.getvalue()
    assert "usage: prepare.py" in text
    if not arguments:
        for word in ("inspect", "verify", "train-tokenizer", "--dry-run", "configs/corpora/stdlib.yaml", "exit codes"):
            assert word in text
