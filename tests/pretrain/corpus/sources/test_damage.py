"""A file that is damaged or cut short is named, and never read as if it ended there."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pretrain.errors import InputError

RNG = random.Random(0)
LINES = [" ".join(RNG.choices(["alpha", "beta", "gamma"], k=40)) + f" {number}\n" for number in range(400)]
TEXT = "".join(LINES).encode()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", data)
    return buffer.getvalue()


def archived(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def as_parquet(data: bytes) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": data.decode().splitlines()}), buffer)
    return buffer.getvalue()


def as_stream(data: bytes) -> bytes:
    table = pa.table({"text": data.decode().splitlines()})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return buffer.getvalue()


def as_file(data: bytes) -> bytes:
    table = pa.table({"text": data.decode().splitlines()})
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return buffer.getvalue()


def as_jsonl(data: bytes) -> bytes:
    return "".join(json.dumps({"text": line}) + "\n" for line in data.decode().splitlines()).encode()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


WHOLE = {
    ("text", "x.gz"): gzip.compress(TEXT),
    ("text", "x.xz"): lzma.compress(TEXT),
    ("text", "x.bz2"): bz2.compress(TEXT),
    ("text", "x.zst"): zstd(TEXT),
    ("text", "x.zip"): zipped(TEXT),
    ("jsonl", "x.jsonl.gz"): gzip.compress(as_jsonl(TEXT)),
    ("jsonl", "x.jsonl.zst"): zstd(as_jsonl(TEXT)),
    ("parquet", "x.parquet"): as_parquet(TEXT),
    ("arrow", "x.arrow"): as_file(TEXT),
    ("arrow", "stream.arrow"): as_stream(TEXT),
    ("tar", "x.tar"): archived(TEXT),
    ("tar", "x.tar.gz"): gzip.compress(archived(TEXT)),
    ("tar", "x.tar.xz"): lzma.compress(archived(TEXT)),
    ("tar", "x.tar.zst"): zstd(archived(TEXT)),
}
CASES = pytest.mark.parametrize(("kind", "name"), WHOLE)


@CASES
def test_cut_short_anywhere(tmp_path, make_source, read_all, kind, name):
    whole = WHOLE[kind, name]
    path = tmp_path / name
    path.write_bytes(whole)
    source = make_source(kind, root=tmp_path, pattern=name)
    assert len(read_all(source)) == {"text": 1, "tar": 4}.get(kind, 400)
    # An uncompressed archive may lack what only fills up its last block.
    last = len(whole) - (len(whole.rstrip(b"\0")) // 512 + 2) * 512 if name == "x.tar" else 0
    cuts = {1, len(whole) // 2, len(whole) - last - 1} | {RNG.randrange(1, len(whole) - last) for _ in range(20)}
    cuts |= set(range(512, len(whole) - last, 8192)) if name == "x.tar" else set()
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=re.escape(f"{path}: damaged, cut short")):
            read_all(source)


@pytest.mark.parametrize(
    ("kind", "name"), [case for case in WHOLE if case[1].endswith(("gz", "xz", "bz2", "zst", "zip"))]
)
def test_a_flipped_bit(tmp_path, make_source, read_all, kind, name):
    """The checksum of every compression format covers its content."""
    whole = WHOLE[kind, name]
    path = tmp_path / name
    source = make_source(kind, root=tmp_path, pattern=name)
    for place in (len(whole) // 3, len(whole) // 2, len(whole) * 2 // 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_all(source)


def test_a_bad_header_within_an_archive(tmp_path, make_source, read_all):
    data = bytearray(archived(b"text"))
    data[2 * 1024 + 100] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tar: damaged.*bad checksum"):
        read_all(make_source("tar", root=tmp_path))


@CASES
def test_something_else_under_the_name(tmp_path, make_source, read_all, kind, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>\n" * 100)
    with pytest.raises(InputError, match=re.escape(f"{name}: damaged, cut short, or not what its name says")):
        read_all(make_source(kind, root=tmp_path, pattern=name))


def test_a_zip_of_several_files(tmp_path, make_source, read_all):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "a")
        archive.writestr("b", "b")
    with pytest.raises(InputError, match=r"x\.zip: .*it holds 2 files"):
        read_all(make_source("text", root=tmp_path, pattern="x.zip"))


def test_a_file_that_went_away(tmp_path, make_source):
    (tmp_path / "a.txt").write_text("a")
    source = make_source("text", root=tmp_path)
    units = source.units()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt: No such file"):
        list(source.documents(units[0]))
