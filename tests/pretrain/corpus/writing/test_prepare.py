import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.corpus import open_corpus

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
    """The one error line of a run that must end with code 2 and change nothing."""
    before = state(workplace)
    result = run(workplace, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    lines = [line for line in lines if not line.startswith("reading: ")]
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
    ],
)
def test_bad_input_is_one_line_and_creates_nothing(workplace, arguments, message):
    (workplace / "c.json").write_text("{}")
    assert message in refused(workplace, *arguments)


def test_a_file_that_is_not_utf_8_is_named(workplace):
    (workplace / "tree" / "part1" / "bad.txt").write_bytes(b"caf\xe9")
    line = refused(workplace, "--config", "c.yaml")
    assert "bad.txt: not UTF-8" in line


def test_a_folder_half_written_by_a_killed_process_is_taken_over(workplace):
    """Killed at some moment of its work, and run again: the corpus is that of an undisturbed run."""
    assert run(workplace, "--config", "c.yaml", "out=undisturbed").returncode == 0
    text = "some words to be read\n" * 200
    for number in range(2000):
        (workplace / "tree" / f"more{number}.txt").write_text(f"{number} {text}")
    process = subprocess.Popen([*COMMAND, "--config", "c.yaml"], cwd=workplace, stderr=subprocess.DEVNULL)
    partial = workplace / "data" / "deep" / ".corpus.partial"
    while not partial.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workplace / "data" / "deep" / "corpus").exists() and partial.is_dir()
    for path in (workplace / "tree").glob("more*"):
        path.unlink()
    assert run(workplace, "--config", "c.yaml").returncode == 0
    assert not partial.exists()
    folders = workplace / "undisturbed", workplace / "data" / "deep" / "corpus"
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]


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


def test_help():
    result = run(PROJECT, "--help")
    assert result.returncode == 0
    assert "inspect" in result.stdout and "verify" in result.stdout and "configs/corpora/stdlib.yaml" in result.stdout
