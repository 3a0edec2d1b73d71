"""The schema of `configs/corpora/*.yaml`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from pretrain.corpus.sources import Source
from pretrain.corpus.tokenizers.training import TokenizerTraining
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
    end_token: str | None = None
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
