"""The text of data sets as `datasets` reads it from local files."""

import json
import subprocess
import sys
from functools import partial

import pytest
from pydantic import ValidationError

from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.sources.hub import HubDataset
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")

FORMATS = ["parquet", "arrow", "jsonl", "jsonl.gz", "jsonl.zst"]
TEXTS = [f"text {i} é" * (i % 5) for i in range(600)]
SOURCE, STREAM = partial(HubDataset, kind="hub"), StreamConfig


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


@pytest.mark.parametrize(("configuration", "where"), [(SOURCE, "sources: "), (STREAM, r"data\.stream\.")])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"body": "a", "id": 1}\n', r"^{}field: .* has no column 'text'; there are body, id$"),
        ('{"text": 5}\n', r"^{}field: .* column 'text' is int64, not text$"),
        ('{"text": "a"}\n{"text": \n', r"^part-000\.jsonl, row 0: cannot be read \(ArrowInvalid: JSON parse error"),
    ],
)
def test_rows_without_text_are_refused(tmp_path, configuration, where, lines, message):
    (tmp_path / "part-000.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message.replace("{}", where)):
        read(StreamedText(configuration(dataset=str(tmp_path))))


@pytest.mark.parametrize(("configuration", "where"), [(SOURCE, "sources: "), (STREAM, r"data\.stream\.")])
@pytest.mark.parametrize(
    ("fields", "message"),
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
def test_what_cannot_be_opened_is_refused(tmp_path, write_files, configuration, where, fields, message):
    write_files(tmp_path / "data", [["a"]], "jsonl")
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty" if fields["dataset"] == "{}" else tmp_path
    with pytest.raises(InputError, match=rf"^{where}dataset: cannot open .*{message}") as refused:
        StreamedText(configuration(**{**fields, "dataset": fields["dataset"].format(folder)}))
    assert "\n" not in str(refused.value)


def test_a_format_needs_files(tmp_path, write_files, monkeypatch):
    write_files(tmp_path / "data", [["a"]], "jsonl")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(InputError, match=r"^data\.stream\.data_files: must name the json files"):
        StreamedText(StreamConfig(dataset="json"))
    (tmp_path / "data").rename(tmp_path / "json")
    monkeypatch.chdir(tmp_path)
    assert read(StreamedText(StreamConfig(dataset="json"))) == ["a"]


def test_rows_of_a_json_file_far_larger_than_a_batch(tmp_path):
    lines = [json.dumps({"text": f"{i} " + "x" * 4000}) for i in range(6000)]  # 24 MB: several chunks of `datasets`
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    text = StreamedText(StreamConfig(dataset=str(tmp_path)))
    whole = read(text)
    assert [int(content.split()[0]) for content in whole] == list(range(6000))
    assert read(text, 0, 0, 5555) == whole[5555:]


@pytest.mark.parametrize("configuration", [SOURCE, STREAM])
@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"dataset": ""}, ("dataset",)),
        ({"split": ""}, ("split",)),
        ({"field": ""}, ("field",)),
        ({"data_files": []}, ("data_files",)),
        ({"data_files": ["a", ""]}, ("data_files", 1)),
        ({"version": "main"}, ("version",)),
    ],
)
def test_impossible_settings_are_refused(configuration, fields, where):
    with pytest.raises(ValidationError) as refused:
        configuration(**{"dataset": "a/b", **fields})
    assert [error["loc"] for error in refused.value.errors()] == [where]


def test_the_schemas_import_nothing_that_reads_data():
    program = """
import sys
import pretrain.corpus.direct.config, pretrain.corpus.sources
print({"aiohttp", "datasets", "huggingface_hub", "pyarrow", "torch"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("set()\n", "")
