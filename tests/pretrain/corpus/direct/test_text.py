import json
import random
import subprocess
import sys
import threading
import time

import pytest
from pydantic import ValidationError

from pretrain.corpus.direct import text as text_module
from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.direct.text import StreamedText
from pretrain.errors import InputError

FORMATS = ["parquet", "arrow", "jsonl", "jsonl.gz"]
TEXTS = [f"text {i} é" * (i % 5) for i in range(600)]


def read(text, file=0, group=0, row=0):
    return [content.decode() for rows in text.rows(file, group, row) for content in rows.texts]


def places(text, file):
    return [
        (rows.group, number) for rows in text.rows(file) for number in range(rows.first, rows.first + len(rows.texts))
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_files_from_any_place_on(tmp_path, write_files, format):
    files = [TEXTS, TEXTS[:3], TEXTS[5:20]]
    write_files(tmp_path / "data", files, format)
    text = StreamedText(StreamConfig(dataset=str(tmp_path / "data")))
    assert text.files == 3 and text.revision == ""
    assert [read(text, number) for number in range(3)] == files
    where = places(text, 0)
    assert len(set(where)) == len(where) == len(TEXTS)
    assert max(group for group, _ in where) == (599 // 7 if format == "parquet" else 0)
    for number in (0, 1, 6, 7, 8, 255, 256, 257, 599):
        assert read(text, 0, *where[number]) == TEXTS[number:]
    group, row = where[-1]
    assert read(text, 0, group, row + 1) == []


def test_parquet_reads_no_row_group_before_the_place(tmp_path, write_files):
    [path] = write_files(tmp_path / "data", [TEXTS], "parquet")
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)  # the first row groups are spoilt
    path.write_bytes(content)
    text = StreamedText(StreamConfig(dataset=str(path)))
    assert read(text, 0, 60, 3) == TEXTS[60 * 7 + 3 :]
    with pytest.raises(InputError, match=r"part-000\.parquet, row 0: "):
        read(text)


def test_a_data_set_may_be_a_folder_a_file_or_a_format_and_files(tmp_path, write_files):
    paths = write_files(tmp_path / "data", [["a"], ["b"]], "jsonl")
    (tmp_path / "data" / "README.md").write_text("about the data")
    for config, expected in [
        ({"dataset": str(tmp_path / "data")}, ["a", "b"]),
        ({"dataset": str(paths[1])}, ["b"]),
        ({"dataset": str(tmp_path / "data"), "data_files": "*-000.jsonl"}, ["a"]),
        ({"dataset": "json", "data_files": [str(paths[1]), str(paths[0])]}, ["b", "a"]),
        ({"dataset": "text", "data_files": str(paths[0])}, ['{"id": 0, "text": "a"}']),
    ]:
        text = StreamedText(StreamConfig(**config))
        assert [content for number in range(text.files) for content in read(text, number)] == expected


def test_null_is_an_empty_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"id": 5}\n{"text": "b"}\n')
    assert read(StreamedText(StreamConfig(dataset=str(tmp_path)))) == ["a", "", "", "b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"body": "a", "id": 1}\n', r"^data\.stream\.field: .* has no column 'text'; there are body, id$"),
        ('{"text": 5}\n', r"^data\.stream\.field: .* column 'text' is int64, not text$"),
        ('{"text": "a"}\n{"text": \n', r"^part-000\.jsonl, row 0: cannot be read \(ArrowInvalid: JSON parse error"),
    ],
)
def test_rows_without_text_are_refused(tmp_path, lines, message):
    (tmp_path / "part-000.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message):
        read(StreamedText(StreamConfig(dataset=str(tmp_path))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset": "{}/nothing"}, "Couldn't find any data"),
        ({"dataset": "{}"}, "EmptyDatasetError: .* doesn't contain any data files"),
        ({"dataset": "{}/data", "split": "test"}, "Bad split: test. Available splits: .*train"),
        ({"dataset": "{}/data", "config": "en"}, "'en' not found. Available: .*default"),
        ({"dataset": "{}/data", "data_files": "x*.jsonl"}, "No .*data files found"),
        (
            {"dataset": "json", "data_files": "http://127.0.0.1:1/a.jsonl"},
            "Unable to find 'http://127.0.0.1:1/a.jsonl'",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, write_files, config, message):
    write_files(tmp_path / "data", [["a"]], "jsonl")
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty" if config["dataset"] == "{}" else tmp_path
    with pytest.raises(InputError, match=rf"^data\.stream: cannot open .*{message}") as refused:
        StreamedText(StreamConfig(**{**config, "dataset": config["dataset"].format(folder)}))
    assert "\n" not in str(refused.value)


def test_a_format_needs_files(tmp_path, write_files, monkeypatch):
    write_files(tmp_path / "data", [["a"]], "jsonl")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(InputError, match=r"^data\.stream\.data_files: must name the json files"):
        StreamedText(StreamConfig(dataset="json"))
    (tmp_path / "data").rename(tmp_path / "json")
    monkeypatch.chdir(tmp_path)
    assert read(StreamedText(StreamConfig(dataset="json"))) == ["a"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"streams": 0}, "streams"),
        ({"validation_fraction": 0}, "validation_fraction"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"validation_bytes": 0}, "validation_bytes"),
        ({"dataset": ""}, "dataset"),
        ({"data_files": []}, "data_files"),
        ({"data_files": ["a", ""]}, "data_files"),
        ({"shuffle": True}, "shuffle"),
    ],
)
def test_impossible_settings_are_refused(fields, where):
    with pytest.raises(ValidationError) as refused:
        StreamConfig(**{"dataset": "a/b", **fields})
    assert [error["loc"] for error in refused.value.errors()] == [(where,)]


@pytest.mark.parametrize("format", FORMATS)
def test_a_broken_connection_costs_no_text(tmp_path, write_files, serve, monkeypatch, format):
    # Several of the ranges of 5 MiB that files are fetched in, also when compressed.
    texts = [random.Random(i).randbytes(25_000).hex() for i in range(400)]
    [path] = write_files(tmp_path / "data", [texts], format, row_group=100)
    monkeypatch.setattr(text_module, "RETRY_WAITS", (0,) * 4)
    server = serve(tmp_path / "data")
    kind = "json" if "json" in format else format
    text = StreamedText(StreamConfig(dataset=kind, data_files=f"{server.url}/{path.name}"))
    server.answers = 0
    assert read(text) == texts
    assert server.answers >= 2
    for cut in ({1}, {2}, {1, 2, 3, 5}):
        server.answers, server.cut = 0, set(cut)
        assert read(text) == texts
        assert not server.cut


def test_a_transfer_that_stalls_is_begun_again(tmp_path, write_files, serve, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    monkeypatch.setattr(text_module, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(text_module, "RETRY_WAITS", (0, 0))
    server = serve(tmp_path / "data")
    text = StreamedText(StreamConfig(dataset="json", data_files=f"{server.url}/{path.name}"))
    server.answers, server.stall = 0, {1}
    began = time.monotonic()
    assert read(text) == TEXTS
    assert not server.stall and time.monotonic() - began < 30


def test_a_connection_that_stays_broken_is_an_error_at_the_row(tmp_path, write_files, serve, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    server = serve(tmp_path / "data")
    text = StreamedText(StreamConfig(dataset="json", data_files=f"{server.url}/{path.name}"))
    monkeypatch.setattr(text_module, "RETRY_WAITS", (0, 0))
    server.cut = set(range(1000))
    server.answers = 0
    with pytest.raises(InputError, match=r"part-000\.jsonl, row 0: cannot be reached \(.*\), tried 3 times$"):
        read(text)
    assert server.answers >= 3


def test_waiting_for_a_connection_ends_when_told_to_stop(tmp_path, write_files, serve, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    server = serve(tmp_path / "data")
    stop = threading.Event()
    text = StreamedText(StreamConfig(dataset="json", data_files=f"{server.url}/{path.name}"), stop)
    monkeypatch.setattr(text_module, "RETRY_WAITS", (600,))
    server.cut = set(range(1000))
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(InputError, match="row 0"):
        read(text)
    assert time.monotonic() - began < 60


def test_a_file_that_vanishes_is_refused_at_once(tmp_path, write_files, serve):
    [path] = write_files(tmp_path / "data", [TEXTS], "parquet")
    server = serve(tmp_path / "data")
    text = StreamedText(StreamConfig(dataset="parquet", data_files=f"{server.url}/{path.name}"))
    path.unlink()
    with pytest.raises(InputError, match=r"part-000\.parquet, row 0: cannot be read \(FileNotFoundError"):
        read(text)


def test_a_server_that_is_gone_is_asked_again(tmp_path, write_files, serve, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "parquet")
    server = serve(tmp_path / "data")
    text = StreamedText(StreamConfig(dataset="parquet", data_files=f"{server.url}/{path.name}"))
    monkeypatch.setattr(text_module, "RETRY_WAITS", (0, 0))
    server.down = True
    with pytest.raises(InputError, match=r"row 0: cannot be reached \(FileNotFoundError: .*\), tried 3 times$"):
        read(text)


def test_streaming_prints_nothing_and_the_schema_does_not_import_it(tmp_path, write_files):
    write_files(tmp_path / "data", [TEXTS, TEXTS], "parquet")
    (tmp_path / "data" / "part-001.parquet").write_bytes(b"no parquet")
    program = f"""
import sys
from pretrain.corpus.direct import StreamConfig
assert not {{"datasets", "torch", "pyarrow"}} & set(sys.modules)
from pretrain.corpus.direct import DirectReader
from pretrain.corpus.direct.text import StreamedText
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.errors import InputError
config = StreamConfig(dataset={str(tmp_path / "data")!r}, streams=1)
with DirectReader(config, load_tokenizer("bytes"), context=8, latents=4, segments=False, global_batch=1, micro_batch=1,
                  rank=0, world_size=1, start_step=0, stop_step=100, read_ahead=1, states=None) as reader:
    next(reader)
text = StreamedText(config)
for rows in text.rows(0): pass
try:
    for rows in text.rows(1): pass
except InputError as error:
    raise SystemExit(0)
raise SystemExit(1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rows_of_a_json_file_far_larger_than_a_batch(tmp_path):
    lines = [json.dumps({"text": f"{i} " + "x" * 4000}) for i in range(6000)]  # 24 MB: several chunks of `datasets`
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    text = StreamedText(StreamConfig(dataset=str(tmp_path)))
    whole = read(text)
    assert [int(content.split()[0]) for content in whole] == list(range(6000))
    assert read(text, 0, 0, 5555) == whole[5555:]
