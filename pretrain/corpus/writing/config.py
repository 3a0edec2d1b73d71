"""The schema of `configs/corpora/*.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from pretrain.corpus.sources import Source
from pretrain.corpus.sources.unit import Unit, group_into_units
from pretrain.corpus.tokenizers.training import TokenizerTraining
from pretrain.corpus.writing.folder import work_path
from pretrain.errors import InputError
from pretrain.schema import FilePath, Section


class PrepareConfig(Section):
    """Everything that decides what a corpus folder holds, where it goes and how it is made."""

    out: FilePath
    """The corpus folder to write."""
    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the documents come from; all of them are shuffled together."""
    tokenizer: str = "bytes"
    """`bytes`, a `tokenizer.json` (or the folder it lies in), a SentencePiece `.model`, or the name of a tokenizer on
    the Hugging Face Hub."""
    end_token: Annotated[str, Field(min_length=1)] | None = None
    """The token after every document; by default the tokenizer's usual one. Not for `bytes`."""
    tokenizer_training: TokenizerTraining | None = None
    """How `prepare.py train-tokenizer` makes the file that `tokenizer` names."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents, chosen by the hash of their text."""
    deduplicate: bool = True
    """Keep one of the documents with exactly the same text."""
    shard_mib: Annotated[float, Field(gt=0, le=1024)] = 64
    """Size of a shard of tokens."""
    processes: PositiveInt | None = None
    """Work at the same time; by default as many as there are CPUs for this program. Each takes about 0.5 GB of memory.
    The corpus does not depend on it."""

    def decisive(self) -> dict[str, Any]:
        """The fields that decide what the corpus holds."""
        return self.model_dump(mode="json", exclude={"out", "processes", "tokenizer_training"})

    def list_units(self) -> list[list[Unit]]:
        """The units of each source. What lies in the folder that is written, or in that of its work, is no source.

        Raises:
            InputError: a source cannot be listed, or there is nothing else in it.
        """
        written = {self.out.resolve(), work_path(self.out)}

        @cache
        def is_written(folder: Path) -> bool:
            resolved = folder.resolve()
            return not written.isdisjoint([resolved, *resolved.parents])

        listings = []
        for number, source in enumerate(self.sources):
            units = source.units()
            files = [file for unit in units for file in unit.files]
            kept = [file for file in files if not is_written(Path(file.path.removeprefix("file://")).parent)]
            if not kept:
                raise InputError(f"sources.{number}: all of its files lie in {self.out}, which is to be written")
            listings.append(units if len(kept) == len(files) else group_into_units(kept))
        return listings
