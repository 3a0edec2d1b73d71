"""`manifest.json`: what a corpus folder holds. It is written last, so a folder without one is not a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import xxhash
from pydantic import NonNegativeInt, PositiveInt, ValidationError

from pretrain.corpus.writing.baselines import Baselines
from pretrain.errors import InputError
from pretrain.schema import Section

MANIFEST_FILE = "manifest.json"
FORMAT: Final = "perceiver-ar token shards"
VERSION: Final = 1


class FileEntry(Section):
    bytes: NonNegativeInt
    xxh64: str


class ShardEntry(Section):
    """Counts of a shard. A document that spans shards counts where it ends."""

    tokens: PositiveInt
    bytes: NonNegativeInt
    """UTF-8 bytes of the documents' text."""
    documents: NonNegativeInt
    files: dict[str, FileEntry]
    """By file name: `.bin` tokens, `.ends` document ends, `.ids` document ids."""


class SplitEntry(Section):
    tokens: PositiveInt
    bytes: NonNegativeInt
    documents: PositiveInt
    shards: list[ShardEntry]
    baselines: Baselines | None
    """Of the validation split only."""


class SourceEntry(Section):
    kind: str
    revision: str
    licence: str
    files: int
    documents: int
    """In the corpus."""
    duplicates: int
    """Left out because another document has the same text."""
    bytes: int


class Manifest(Section):
    format: Literal["perceiver-ar token shards"]
    version: Literal[1]
    tokenizer: str
    tokenizer_hash: str
    vocab_size: PositiveInt
    end_id: NonNegativeInt
    """Follows every document."""
    dtype: Literal["uint16", "uint32"]
    """Little-endian."""
    shard_tokens: PositiveInt
    """In every shard of a split but its last."""
    fingerprint: str
    """Hash of all that decides the tokens and their order in the shards."""
    inputs: str
    """Hash of the configuration and of the listing of the sources (paths, sizes, times of change)."""
    licence: str
    sources: list[SourceEntry]
    splits: dict[str, SplitEntry]
    """`train` and `validation`, or `validation` alone beside data that is streamed without preparation."""
    tokenizer_files: dict[str, FileEntry]
    config: dict[str, Any]
    """The corpus was prepared with."""
    checksum: str = ""
    """xxh64 of this manifest with an empty checksum."""

    def files(self) -> dict[str, FileEntry]:
        """Every file of the folder but the manifest, by name."""
        shards = [shard.files for split in self.splits.values() for shard in split.shards]
        return {name: entry for files in [*shards, self.tokenizer_files] for name, entry in files.items()}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    manifest = manifest.model_copy(update={"checksum": _checksum(manifest)})
    text = manifest.model_dump_json(indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8", newline="\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a corpus folder.

    Raises:
        InputError: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        what = "has no manifest.json: it is not a corpus, or one half-written" if folder.is_dir() else "does not exist"
        raise InputError(f"corpus {folder} {what}; prepare it with pretrain/prepare.py")
    remedy = "remove the folder and prepare it again"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        if field in ("format", "version"):
            wanted = f"this program reads {FORMAT!r} version {VERSION}"
            raise InputError(f"{path}: {field} is {first['input']!r}, but {wanted}; {remedy}") from None
        raise InputError(f"{path}: damaged or no corpus manifest ({field}: {first['msg']}); {remedy}") from None
    if manifest.checksum != _checksum(manifest):
        raise InputError(f"{path}: damaged, its checksum does not hold; {remedy}")
    return manifest


def _checksum(manifest: Manifest) -> str:
    return xxhash.xxh64_hexdigest(manifest.model_copy(update={"checksum": ""}).model_dump_json().encode())
