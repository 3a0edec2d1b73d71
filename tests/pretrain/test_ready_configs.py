"""The corpora of ``configs/corpora``: each is read from a small replica of where it comes from.

Repositories have their real names, file names and columns on a Hub on this machine, enwik8 lies on a local web server,
and archives and folders lie where the file's own comments say.
"""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pretrain.corpus.writing.config import PrepareConfig
from pretrain.schema import load_yaml, validate

PROJECT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in sorted((PROJECT / "configs" / "corpora").glob("*.yaml"))}
WIKITEXT_CARD = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - {split: test, path: wikitext-103-raw-v1/test-*}
  - {split: train, path: wikitext-103-raw-v1/train-*}
  - {split: validation, path: wikitext-103-raw-v1/validation-*}
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: wikitext-2-raw-v1/train-*}
---
"""


class Repository(NamedTuple):
    name: str
    wanted: list[str]
    """Files that the configuration is to read."""
    others: list[str]
    columns: dict[str, Any]
    """Besides `text`."""


DOLMA = {"id": "1", "source": "s", "created": "2020", "added": "2024", "metadata": {"license": "CC0"}}
REPOSITORIES = {
    "wikitext_103": Repository(
        "Salesforce/wikitext",
        [f"wikitext-103-raw-v1/train-0000{n}-of-00002.parquet" for n in range(2)],
        [
            *(f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet" for split in ("test", "validation")),
            "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        ],
        {},
    ),
    "pg19": Repository(
        "emozilla/pg19",
        ["data/train-00000-of-00023-5263dc4323e881d2.parquet", "data/train-00001-of-00023-2b13c68dbeba63b5.parquet"],
        ["data/test-00000-of-00001-29a571947c0b5ccc.parquet"],
        {"short_book_title": "t", "publication_date": 1900, "url": "u"},
    ),
    "c4": Repository(
        "allenai/c4",
        [f"en/c4-train.{n:05d}-of-01024.json.gz" for n in range(8)],
        ["en/c4-train.00008-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"],
        {"timestamp": "2019-04-25T12:57:54Z", "url": "u"},
    ),
    "fineweb_edu": Repository(
        "HuggingFaceFW/fineweb-edu",
        [f"sample/10BT/{n:03d}_00000.parquet" for n in range(3)],
        ["sample/100BT/000_00000.parquet", "data/CC-MAIN-2013-20/train-00000-of-00014.parquet"],
        {"id": "i", "dump": "d", "url": "u", "file_path": "f", "language": "en", "token_count": 3, "score": 3.0},
    ),
    "wikipedia": Repository(
        "wikimedia/wikipedia",
        [f"20231101.en/train-0000{n}-of-00041.parquet" for n in range(2)],
        ["20231101.de/train-00000-of-00020.parquet"],
        {"id": "1", "url": "u", "title": "t"},
    ),
    "arxiv": Repository(
        "common-pile/arxiv_papers_filtered", [f"arxiv-papers-000{n}.json.gz" for n in range(2)], [], DOLMA
    ),
    "stack_exchange": Repository(
        "common-pile/stackexchange_filtered",
        [f"stackexchange-000{n}.json.gz" for n in range(4)],
        ["stackexchange-0004.json.gz", "stackexchange-0010.json.gz"],
        DOLMA,
    ),
    "stack_v2_edu": Repository(
        "common-pile/stackv2_edu_filtered",
        [f"stackv2_edu-000{n}.json.gz" for n in range(4)],
        ["stackv2_edu-0013.json.gz"],
        DOLMA,
    ),
    "imdb": Repository(
        "stanfordnlp/imdb",
        [f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "unsupervised")],
        ["plain_text/test-00000-of-00001.parquet"],
        {"label": 0},
    ),
    "pile_uncopyrighted": Repository(
        "monology/pile-uncopyrighted",
        ["train/00.jsonl.zst"],
        ["train/01.jsonl.zst", "test.jsonl.zst", "val.jsonl.zst"],
        {"meta": {"pile_set_name": "ArXiv"}},
    ),
}
WIKITEXT_ROWS = ["", " = {} = \n", "", " Words , = or not . \n", "", " = = Part = = \n", "", " More . \n"]
PAGES = ["<mediawiki>\n  <siteinfo/>\n", "  <page>\n    <title>AaA</title>\n  </page>\n", "  <page>\n    <title>Bb</ti"]


def test_every_config_is_here():
    assert {*REPOSITORIES, "stdlib", "my_text", "linux_source", "enwik8"} == {*CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_valid_and_says_what_one_must_know(name):
    config = validate(PrepareConfig, load_yaml(CONFIGS[name], []))
    assert str(config.out) == {"linux_source": "data/linux"}.get(name, f"data/{name}")
    header = CONFIGS[name].read_text().split("out: ")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    if name != "my_text":
        assert all(word in header for word in ("Licence", "Time", "Tokenizer", "Checked by running"))
        assert all(source.licence != "unknown" for source in config.sources)


def write_rows(path: Path, texts: list[str], columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**columns, "text": text} for text in texts]), path)
        return
    lines = "".join(json.dumps({**columns, "text": text}) + "\n" for text in texts).encode()
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}[path.suffix](lines))


def texts_of(repository: Repository, file: str) -> list[str]:
    """Rows of a replica's file; of WikiText they make one article."""
    if repository.name == "Salesforce/wikitext":
        return [row.format(file.replace("=", "")) for row in WIKITEXT_ROWS]
    return [f"{repository.name} {file} row {row}" for row in range(3)]


def write_repositories(root: Path) -> None:
    for repository in REPOSITORIES.values():
        folder = root / "datasets" / repository.name
        for file in repository.wanted + repository.others:
            write_rows(folder / file, texts_of(repository, file), repository.columns)
    (root / "datasets" / "Salesforce" / "wikitext" / "README.md").write_text(WIKITEXT_CARD)


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def write_local_data(folder: Path) -> None:
    """What a person has before running the commands: a folder of texts, and the archive of Debian's package."""
    (folder / "my_text" / "deep").mkdir(parents=True)
    (folder / "my_text" / "a.txt").write_text("mine")
    (folder / "my_text" / "deep" / "b.txt").write_text("mine, too")
    archive = folder / "data" / "raw" / "usr" / "src" / "linux-source-6.1.tar.xz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:xz") as writer:
        for name, content in {"kernel/fork.c": b"int fork;\n", "logo.gif": b"GIF\xff", "COPYING": b"GPL"}.items():
            member = tarfile.TarInfo(f"linux-source-6.1/{name}")
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))


class QuietPages(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "dc").mkdir()
    with zipfile.ZipFile(folder / "dc" / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", "".join(PAGES))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietPages, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dc"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, start_hub) -> tuple[Path, dict[str, str]]:
    """A folder to run commands in, and their environment: a Hub on this machine."""
    root, folder = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("workplace")
    write_repositories(root)
    write_tokenizer(root / "models" / "openai-community" / "gpt2" / "tokenizer.json")
    write_local_data(folder)
    return folder, start_hub(root)


def sources_of(name: str, web: str) -> list[dict[str, Any]]:
    sources = load_yaml(CONFIGS[name], [])["sources"]
    return [source | {"root": web} if name == "enwik8" else source for source in sources]


@pytest.fixture(scope="module")
def contents(workplace, web, read_sources) -> dict[str, list[str]]:
    """Texts that the source of each config reads."""
    folder, environment = workplace
    sources = {name: sources_of(name, web)[0] for name in CONFIGS if name != "stdlib"}
    read = read_sources(sources, environment, folder)
    assert not {name: held["error"] for name, held in read.items() if "error" in held}
    return {name: [text for unit in held["documents"] for _, text in unit] for name, held in read.items()}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_the_right_files_of_a_repository_are_read(contents, name):
    repository = REPOSITORIES[name]
    expected = [texts_of(repository, file) for file in repository.wanted]
    if name == "wikitext_103":
        assert contents[name] == ["".join(rows) for rows in expected]
    else:
        assert contents[name] == [text for texts in expected for text in texts]


def test_files_of_ones_own_archives_and_the_web(contents):
    assert contents["my_text"] == ["mine", "mine, too"]
    assert contents["linux_source"] == ["int fork;\n", "GPL"]
    assert contents["enwik8"] == PAGES


RUN_EACH = """
import json, sys, traceback
from pretrain.errors import InputError
from pretrain.prepare import main
for name, arguments in json.load(sys.stdin).items():
    print(f"== {name}", flush=True)
    try:
        print("exit", main(arguments), flush=True)
    except InputError as error:
        print("error:", error, flush=True)
"""


def test_a_dry_run_of_each(workplace, web):
    folder, environment = workplace
    write_tokenizer(folder / "data" / "linux_tokenizer.json")
    before = sorted(folder.rglob("*"))
    arguments = {
        name: ["--config", str(path), "--dry-run", f"sources={json.dumps(sources_of(name, web))}"]
        for name, path in CONFIGS.items()
    }
    result = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        cwd=folder,
        env=environment,
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    outputs = dict(part.split("\n", 1) for part in result.stdout.split("== ")[1:])
    assert {name: output.splitlines()[-1] for name, output in outputs.items()} == dict.fromkeys(CONFIGS, "exit 0")
    assert sorted(folder.rglob("*")) == before
