import io
import random

import numpy as np
import pytest
import xxhash
from rich.console import Console

from pretrain.corpus import open_corpus
from pretrain.corpus.direct import StreamConfig, write_validation
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.writing.baselines import measure_baselines
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")

FRACTION = 0.2


@pytest.fixture
def texts():
    rng = random.Random(5)
    return ["".join(rng.choices("abc dé\n", k=rng.randint(1, 200))) for _ in range(600)]


@pytest.fixture
def config(tmp_path, write_files, texts):
    # Empty texts and repetitions are no documents of their own.
    write_files(tmp_path / "data", [[*texts[:100], "", *texts[:50]], texts[100:]], "parquet")
    return StreamConfig(
        dataset=str(tmp_path / "data"), validation_fraction=FRACTION, validation_bytes=5000, licence="CC0-1.0"
    )


def held_out(texts):
    return [t for t in texts if int.from_bytes(xxhash.xxh3_128_digest(t.encode())[:8], "big") < FRACTION * 2**64]


def write(config, out):
    console = Console(file=io.StringIO())
    write_validation(config, out, console)
    return open_corpus(out).manifest, console.file.getvalue()


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_the_first_held_out_documents_become_a_corpus(tmp_path, config, texts, bpe, name):
    config = config.model_copy(update={"tokenizer": bpe if name == "bpe" else "bytes"})
    manifest, output = write(config, tmp_path / "run" / "validation")
    expected = held_out(texts)
    sizes = np.cumsum([len(text.encode()) for text in expected])
    expected = expected[: int(np.searchsorted(sizes, 5000)) + 1]
    assert 10 < len(expected) < len(held_out(texts))

    corpus = open_corpus(tmp_path / "run" / "validation")
    assert list(manifest.splits) == ["validation"]
    stream = corpus.split("validation")
    tokenizer = load_tokenizer(config.tokenizer)
    assert corpus.tokenizer().hash == tokenizer.hash
    documents = np.split(stream.read(0, len(stream)), stream.document_ends()[:-1])
    assert all(document[-1] == tokenizer.end_id for document in documents)
    assert [tokenizer.decode(document[:-1]) for document in documents] == expected
    assert stream.document_ids()[0].startswith("part-000.parquet, row")

    split = manifest.splits["validation"]
    joined = "".join(expected).encode()
    assert (split.documents, split.bytes, split.tokens) == (len(expected), len(joined), len(stream))
    assert split.baselines == measure_baselines(joined)
    [source] = manifest.sources
    assert source.licence == manifest.licence == "CC0-1.0"
    assert (source.documents, source.bytes, source.revision) == (len(expected), len(joined), "")
    assert "holding out text" in output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["validation"]


def test_it_is_written_once(tmp_path, config):
    first, _ = write(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "data").rename(tmp_path / "moved")  # nothing is read again
    again, output = write(config.model_copy(update={"streams": 3}), tmp_path / "out")
    assert (again, output) == (first, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    for changed in ({"validation_fraction": 0.3}, {"validation_bytes": 1}, {"field": "id"}, {"dataset": "other"}):
        with pytest.raises(InputError, match=r"^data\.stream: .*out was written with other settings"):
            write(config.model_copy(update=changed), tmp_path / "out")


def test_what_is_there_has_to_do_when_there_is_little(tmp_path, config, texts):
    manifest, output = write(config.model_copy(update={"validation_bytes": 10**6}), tmp_path / "out")
    assert manifest.splits["validation"].documents == len(set(held_out(texts)))
    assert manifest.sources[0].duplicates == len(held_out(texts[:50]))
    assert "0.0 of 1.0 MB" in output


def test_looking_for_held_out_text_has_an_end(tmp_path, write_files):
    never = [text for text in (f"text {i} " * 20 for i in range(80_000)) if not held_out([text])]
    [some] = held_out([f"text {i}" for i in range(10)])[:1]
    write_files(tmp_path / "data", [[*[some] * 20, *never]], "jsonl")
    path = tmp_path / "data" / "part-000.jsonl"
    path.write_text(path.read_text() + "{broken\n" * 10_000)  # as far as this nobody reads
    config = StreamConfig(dataset=str(tmp_path / "data"), validation_fraction=FRACTION, validation_bytes=1000)
    manifest, _ = write(config, tmp_path / "out")
    assert manifest.splits["validation"].documents == 1
    path.write_text("".join(path.read_text().splitlines(keepends=True)[20:]))
    with pytest.raises(
        InputError, match=r"^data\.stream\.validation_fraction: none of the first \d+ documents .* 0\.2;"
    ):
        write(config, tmp_path / "other")
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".other*"))


def test_nothing_is_left_where_the_data_set_cannot_be_read(tmp_path, config):
    with pytest.raises(InputError, match=r"^data\.stream\.field: .* has no column 'body'; there are id, text"):
        write(config.model_copy(update={"field": "body"}), tmp_path / "run" / "out")
    assert not (tmp_path / "run").exists()


def test_another_folder_is_not_overwritten(tmp_path, config):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a corpus"):
        write(config, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
