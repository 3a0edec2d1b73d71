"""Data sets of the Hub, and what else `datasets` can load, read by processes that see a Hub on this machine."""

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TITLES = r" = [^=].* = $"
ARTICLES = [
    [" = Valkyria = \n", " It is \n", " = = Plot = = \n", " A story . \n"],
    [" = Anarchism = \n", " A doctrine \n"],
    [" = Tower = \n", " High \n", " = = = Stone = = = \n", " Old \n"],
]
CARD = """---
configs:
- config_name: raw
  data_files:
  - {split: train, path: raw/train-*}
  - {split: test, path: raw/test-*}
---
"""


@pytest.fixture(scope="module")
def repository(hub):
    root = hub[0] / "datasets" / "owner" / "wiki"
    (root / "raw").mkdir(parents=True)
    for number, articles in enumerate([ARTICLES[:2], ARTICLES[2:]]):
        rows = ["", *(row for article in articles for row in [*article, None])]
        table = pa.table({"n": range(len(rows)), "text": rows})
        pq.write_table(table, root / "raw" / f"train-{number:05d}-of-00002.parquet")
    pq.write_table(pa.table({"text": ["a test"]}), root / "raw" / "test-00000-of-00001.parquet")
    (root.parent / "small").mkdir()
    (root.parent / "small" / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (root / "README.md").write_text(CARD)
    digest = hashlib.sha1()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


@pytest.fixture(scope="module")
def results(hub, repository, read_with_hub, tmp_path_factory):
    local = tmp_path_factory.mktemp("local")
    (local / "table.csv").write_text("title,text\na,first\nb,second\n")
    datasets.Dataset.from_dict({"text": ["x", "y"]}).to_parquet(local / "folder" / "data.parquet")
    files = hub[0] / "datasets" / "owner" / "files" / "en"
    files.mkdir(parents=True)
    for number in range(12):
        (files / f"part.{number:02d}.json.gz").write_bytes(gzip.compress(json.dumps({"text": str(number)}).encode()))
    wiki = {"kind": "hub", "dataset": "owner/wiki", "config": "raw"}
    hf = {"kind": "jsonl", "root": "hf://datasets/owner/files"}
    return read_with_hub(
        {
            "articles": wiki | {"document_start": TITLES},
            "test": wiki | {"split": "test"},
            "pinned": wiki | {"split": "test", "revision": repository},
            "small": {"kind": "hub", "dataset": "owner/small", "field": "body"},
            "data_files": {"kind": "hub", "dataset": "owner/small", "data_files": "rows.*", "field": "body"},
            "mixed": {"kind": "hub", "dataset": "owner/wiki", "data_files": "README.md"},
            "csv": {"kind": "hub", "dataset": "csv", "data_files": str(local / "table.csv")},
            "folder": {"kind": "hub", "dataset": str(local / "folder")},
            "hf": hf | {"pattern": "en/part.0[0-2].json.gz"},
            "hf by name": hf | {"pattern": ["en/part.11.json.gz", "en/part.03.json.gz"]},
            "no split": wiki | {"split": "dev"},
            "no config": wiki | {"config": "rare"},
            "no column": wiki | {"field": "body"},
            "no text": wiki | {"field": "n"},
            "no revision": wiki | {"revision": "v9"},
            "no set": wiki | {"dataset": "owner/nothing"},
            "hf no set": hf | {"root": "hf://datasets/owner/nothing", "pattern": "*.gz"},
            "hf no file": hf | {"pattern": "en/part.99.json.gz"},
            "hf no match": hf | {"pattern": "de/*.gz"},
        }
    )


def test_shards_are_units_and_articles_documents(hub, results, repository):
    joined = ["".join(article) for article in ARTICLES]
    files = sorted((hub[0] / "datasets" / "owner" / "wiki" / "raw").glob("train-*"))
    assert results["articles"] == {
        "state": repository,
        "files": [["train/00000-of-00002"], ["train/00001-of-00002"]],
        "bytes": [path.stat().st_size for path in files],
        "documents": [
            [["train/00000-of-00002:2", joined[0]], ["train/00000-of-00002:7", joined[1]]],
            [["train/00001-of-00002:2", joined[2]]],
        ],
    }


def test_splits_revisions_configurations_and_files(results, repository):
    assert results["test"]["documents"] == [[["test/00000-of-00001:1", "a test"]]]
    assert results["pinned"] == results["test"] and results["pinned"]["state"] == repository
    for name in ("small", "data_files"):
        assert [text for _, text in results[name]["documents"][0]] == ["one", "two"]


def test_local_data_has_no_commit(results):
    assert [text for _, text in results["csv"]["documents"][0]] == ["first", "second"]
    assert [text for _, text in results["folder"]["documents"][0]] == ["x", "y"]
    assert results["csv"]["state"] == results["folder"]["state"] == ""


def test_files_of_a_repository_by_url(results):
    first = [f"en/part.{number:02d}.json.gz" for number in range(3)]
    assert results["hf"]["files"] == [first]
    assert results["hf"]["documents"] == [[[f"{file}:1", str(number)] for number, file in enumerate(first)]]
    assert results["hf by name"]["files"] == [["en/part.03.json.gz", "en/part.11.json.gz"]]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "no split",
            ["sources: dataset: cannot open owner/wiki", "Bad split: dev. Available splits: ['train', 'test']"],
        ),
        ("mixed", ["sources: dataset: cannot open owner/wiki: DataFilesNotFoundError"]),
        ("no config", ["sources: dataset: cannot open owner/wiki", "'rare' not found", "raw"]),
        ("no column", ["sources: field: owner/wiki: has no column 'body'; there are n, text"]),
        ("no text", ["sources: field: owner/wiki: column 'n' is int64, not text"]),
        ("no revision", ["sources: dataset: cannot open owner/wiki", "Revision 'v9' doesn't exist"]),
        ("no set", ["sources: dataset: cannot open owner/nothing", "doesn't exist on the Hub or cannot be accessed"]),
        ("hf no set", ["hf://datasets/owner/nothing/*.gz: there is no such file or folder"]),
        ("hf no file", ["hf://datasets/owner/files/en/part.99.json.gz: there is no such file"]),
        ("hf no match", ["sources: no file in hf://datasets/owner/files matches 'de/*.gz'"]),
    ],
)
def test_what_is_not_there_is_one_line(results, name, parts):
    error = results[name]["error"]
    assert "\n" not in error
    assert all(part in error for part in parts), error


def run(program, environment, *arguments, **options):
    command = [sys.executable, *program, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


READ_SOURCES = [str(Path(__file__).with_name("read_sources.py"))]


@pytest.fixture
def unreachable(hub, repository, tmp_path):
    return hub[1] | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}


def test_files_of_a_hub_that_cannot_be_reached(unreachable):
    sources = {"file": {"kind": "jsonl", "root": "hf://datasets/owner/files", "pattern": "en/part.00.json.gz"}}
    results = json.loads(run(READ_SOURCES, unreachable, input=json.dumps(sources)))
    assert "hf://datasets/owner/files/en/part.00.json.gz: cannot be read (" in results["file"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_data_set_of_a_hub_that_cannot_be_reached(hub, unreachable, cached):
    # huggingface_hub tries for half a minute; then `datasets` would take what its cache holds, of whatever commit.
    if cached:
        program = ["-c", "import datasets; datasets.disable_progress_bars(); datasets.load_dataset('owner/small')"]
        run(program, unreachable | {"HF_ENDPOINT": hub[1]["HF_ENDPOINT"]})
    sources = {"set": {"kind": "hub", "dataset": "owner/small", "field": "body"}}
    results = json.loads(run(READ_SOURCES, unreachable, input=json.dumps(sources)))
    reason = "only the cache of `datasets` holds it" if cached else "Couldn't reach 'owner/small' on the Hub"
    assert f"sources: dataset: cannot open owner/small: ConnectionError: {reason}" in results["set"]["error"]


PINNED = """
import pickle, sys
from pathlib import Path
from pretrain.corpus.sources.hub import HubDataset
from pretrain.errors import InputError
units, source = Path(sys.argv[2]), HubDataset(kind="hub", dataset="owner/moving")
if sys.argv[1] == "list":
    units.write_bytes(pickle.dumps((source.units(), source.state)))
else:
    [unit], state = pickle.loads(units.read_bytes())
    try:
        print([document.text for document in source.documents(unit)])
    except InputError as error:
        print(error, state)
"""


def test_another_process_reads_the_commit_that_was_listed(hub, tmp_path):
    path = hub[0] / "datasets" / "owner" / "moving" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "listed"}\n')
    run(["-c", PINNED], hub[1], "list", str(tmp_path / "units"))
    path.write_text('{"text": "pushed later"}\n')  # this Hub forgets its earlier commits
    printed = run(["-c", PINNED], hub[1], "read", str(tmp_path / "units"))
    commit = printed.split()[-1]
    assert f"Revision '{commit}' doesn't exist for dataset 'owner/moving'" in printed


def test_a_process_lists_a_data_set_once(own_cache, write_files, make_source, tmp_path, monkeypatch):
    opened = []
    load = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: opened.append(a) or load(*a, **k))
    write_files(tmp_path / "data", [["a", ""], ["", "b"]], "jsonl")
    source = make_source("hub", dataset=tmp_path / "data")
    units = source.units()
    assert [d.text for unit in units for d in pickle.loads(pickle.dumps(source)).documents(unit)] == [b"a", b"b"]
    assert source.state == "" and len(opened) == 1
