"""What comes out of files of every format is what the format's own library says is in them."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pretrain.corpus.sources.documents import join_rows
from pretrain.corpus.sources.unit import Document, SourceFile
from pretrain.errors import InputError

TEXTS = ["first", "zweiter é\n", "三\r\nwith \u2028 and \x00", "\ufeffwith a mark\n\n", " "]


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/inner.txt", data)
    return buffer.getvalue()


def in_two_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


COMPRESS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": in_two_frames,
    ".zip": zipped,
    "": bytes,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_is_kept_exactly(tmp_path, make_source, read_all, suffix):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt{suffix}").write_bytes(COMPRESS[suffix](text.encode()))
    source = make_source("text", root=tmp_path, pattern=f"*.txt{suffix}")
    assert read_all(source) == [Document(f"{n}.txt{suffix}", text.encode()) for n, text in enumerate(TEXTS)]


def test_files_come_in_order_and_once_whatever_the_patterns(tmp_path, make_source, read_all):
    for name in ("b/2.md", "b/1.md", "a.txt", "c/d/e.txt", "c/x.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = make_source("text", root=tmp_path, pattern=["**/*.txt", "b/*.md", "a.txt"])
    assert [d.id for d in read_all(source)] == ["a.txt", "b/1.md", "b/2.md", "c/d/e.txt"]
    assert pickle.loads(pickle.dumps(source)).units() == source.units()
    with pytest.raises(InputError, match=re.escape("matches '*.rst'")):
        make_source("text", root=tmp_path, pattern=["a.txt", "*.rst"]).units()


def test_undecodable_text_is_an_error_or_left_out(tmp_path, make_source, read_all):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 text \(byte 3 is 0xe9"):
        read_all(make_source("text", root=tmp_path))
    assert read_all(make_source("text", root=tmp_path, skip_undecodable=True)) == [Document("b.txt", b"fine")]


def test_a_file_of_many_documents(tmp_path, make_source, read_all):
    text = b"<head>\n  <page>\n one\n   <page> not\n  <page>\n two\r\n \xff\n  <page>\nlast"
    (tmp_path / "wiki.xml").write_bytes(text)
    fields = {"root": tmp_path, "pattern": "wiki.xml", "document_start": "  <page>"}
    with pytest.raises(InputError, match=r"wiki\.xml:5: not UTF-8"):
        read_all(make_source("text", **fields))
    assert read_all(make_source("text", **fields, skip_undecodable=True)) == [
        Document("wiki.xml:1", b"<head>\n"),
        Document("wiki.xml:2", b"  <page>\n one\n   <page> not\n"),
        Document("wiki.xml:8", b"  <page>\nlast"),
    ]


@given(st.lists(st.text("ab=\n", max_size=4), max_size=12))
@hypothesis_settings(max_examples=40)
def test_joined_lines_are_the_text_cut_where_documents_start(pieces):
    text = "".join(pieces)
    lines = enumerate(text.encode().splitlines(keepends=True), start=1)
    joined = [document.text.decode() for document in join_rows(lines, SourceFile("f", "f", 0, ""), "=")]
    assert joined == [part for part in re.split(r"(?m)^(?==)", text) if part]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ""])
def test_json_lines(tmp_path, make_source, read_all, suffix):
    rows = [{"meta": {"body": text}} for text in TEXTS] + [{"meta": {"body": ""}}, {"meta": {"body": None}}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / f"x.jsonl{suffix}").write_bytes(COMPRESS[suffix](lines.encode()))
    source = make_source("jsonl", root=tmp_path, pattern=f"*.jsonl{suffix}", field="meta.body")
    expected = [Document(f"x.jsonl{suffix}:{2 * n + 1}", text.encode()) for n, text in enumerate(TEXTS)]
    assert read_all(source) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"title": 1, "url": 2}', "x.jsonl:2: .*field 'text'; there are title, url"),
        (b'{"text": 1}', "x.jsonl:2: field 'text' is int, not text"),
        (b'{"text": "\\ud800"}', "x.jsonl:2: field 'text' is not valid Unicode"),
        (b'{"text": "\xff"}', "x.jsonl:2: not a JSON object"),
        (b"[1]", "x.jsonl:2: not a JSON object"),
        (b"[" * 100_000, "x.jsonl:2: not a JSON object"),
        (b'{"text": "cut', "x.jsonl:2: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, make_source, read_all, line, message):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(InputError, match=message):
        read_all(make_source("jsonl", root=tmp_path))


def table_of(texts, kind=None):
    return pa.table({"n": pa.array(range(len(texts))), "body": pa.array(texts, type=kind or pa.string())})


def write_parquet(table, path):
    pq.write_table(table, path, row_group_size=2)


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_file(table, path):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITE = {"parquet": write_parquet, "arrow stream": write_stream, "arrow file": write_file}


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("format", WRITE)
def test_tables(tmp_path, make_source, read_all, format, text_type):
    kind = format.split()[0]
    texts = [*TEXTS[:2], None, "", *TEXTS[2:]]
    WRITE[format](table_of(texts, text_type), tmp_path / f"x.{kind}")
    expected = [Document(f"x.{kind}:{n}", text.encode()) for n, text in enumerate(texts, 1) if text]
    assert read_all(make_source(kind, root=tmp_path, field="body")) == expected
    joined = read_all(make_source(kind, root=tmp_path, field="body", document_start="三"))
    assert joined == [
        Document(f"x.{kind}:1", "first\nzweiter é\n".encode()),
        Document(f"x.{kind}:5", "".join([TEXTS[2], "\n", *TEXTS[3:]]).encode()),
    ]


@pytest.mark.parametrize("format", WRITE)
def test_a_column_that_is_no_text(tmp_path, make_source, read_all, format):
    kind = format.split()[0]
    WRITE[format](table_of(TEXTS), tmp_path / f"x.{kind}")
    with pytest.raises(InputError, match=f"x.{kind}: has no column 'text'; there are n, body"):
        read_all(make_source(kind, root=tmp_path))
    with pytest.raises(InputError, match=f"x.{kind}: column 'n' is int64, not text"):
        read_all(make_source(kind, root=tmp_path, field="n"))


@pytest.mark.parametrize("format", WRITE)
def test_a_row_that_is_not_utf8(tmp_path, make_source, read_all, format):
    kind = format.split()[0]
    raw = pa.array([b"good", b"caf\xe9"], type=pa.binary())
    WRITE[format](pa.table({"text": raw.view(pa.string())}), tmp_path / f"x.{kind}")
    with pytest.raises(InputError, match=f"x.{kind}:2: column 'text' is not valid Unicode"):
        read_all(make_source(kind, root=tmp_path))


def test_what_datasets_saves_to_disk(tmp_path, make_source, read_all):
    data = datasets.Dataset.from_dict({"text": TEXTS})
    data.save_to_disk(tmp_path, num_shards=2)
    assert [d.text.decode() for d in read_all(make_source("arrow", root=tmp_path))] == data["text"]


MODES = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2", "tgz": "w:gz"}


def pack(path, mode="w"):
    """An archive of all that there is: long names, links out of it, a device, an absolute name, one with ``..``."""
    with tarfile.open(path, mode) as archive:

        def add(name, data=b"", **fields):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))

        add("./p", type=tarfile.DIRTYPE)
        add("./p/b.c", b"int b;\n")
        add("p/" + "long" * 60 + "/a.c", "é".encode())
        add("p/link.c", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("p/hard.c", type=tarfile.LNKTYPE, linkname="p/b.c")
        add("p/zero", type=tarfile.CHRTYPE)
        add("p/binary.o", b"\xff\xfe")
        add("/etc/absolute.h", b"absolute")
        add("../outside.h", b"outside")
        add("readme", b"read me")


@pytest.mark.parametrize("suffix", [*MODES, "tar.zst"])
def test_archives(tmp_path, make_source, read_all, suffix):
    archive = tmp_path / f"x.{suffix}"
    pack(archive, MODES.get(suffix, "w"))
    if suffix == "tar.zst":
        archive.write_bytes(zstandard.compress(archive.read_bytes()))
    before = sorted(tmp_path.rglob("*"))
    long_name = "p/" + "long" * 60 + "/a.c"
    source = make_source("tar", root=tmp_path, pattern=archive.name, skip_undecodable=True)
    assert {d.id.removeprefix(f"{archive.name}:"): d.text for d in read_all(source)} == {
        "p/b.c": b"int b;\n",
        long_name: "é".encode(),
        "/etc/absolute.h": b"absolute",
        "../outside.h": b"outside",
        "readme": b"read me",
    }
    source = make_source("tar", root=tmp_path, pattern=archive.name, members=["**/*.c", "readme"])
    assert [d.text for d in read_all(source)] == [b"int b;\n", "é".encode(), b"read me"]
    with pytest.raises(InputError, match=rf"x\.{suffix}:p/binary\.o: not UTF-8"):
        read_all(make_source("tar", root=tmp_path, pattern=archive.name))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("field", ["document_start: '('", "pattern: []", "pattern: ['']", "root: ''"])
def test_fields_that_cannot_be_are_refused_by_name(make_source, field):
    name, _, value = field.partition(": ")
    with pytest.raises(InputError, match=rf"^sources\.0\.{name}"):
        make_source("text", **{"root": "here", name: {"[]": [], "['']": [""]}.get(value, value.strip("'"))})
